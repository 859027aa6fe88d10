/*
 * Stands in for the hypervisor's libraries (libxenctrl, libxenevtchn, libxengnttab), so that an unmodified xenstored or oxenstored of
 * Xen 4.17 runs on a machine without Xen. Preloaded: XENSHIM_DIR=... LD_PRELOAD=.../xen_shim.so xenstored -N ...
 *
 * Everything is below $XENSHIM_DIR:
 *   dom<N>.ring   4 KiB, domain N's ring page
 *   dom<N>.evt    made by the guest's side: a unix datagram socket; one byte is an event for it
 *   evtchn.sock   the daemon's unix datagram socket; a uint32 is the port that an event is for
 *   xsd_port      dom0's port, as text
 * The port of domain N is 100 + N.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define PORT_BASE 100
#define PORT_VIRQ 3

static const char *dir(void)
{
    const char *d = getenv("XENSHIM_DIR");
    return d ? d : "/tmp/xenshim";
}

static void path_of(char *buf, size_t n, const char *leaf)
{
    snprintf(buf, n, "%s/%s", dir(), leaf);
}

/* ---- files under /proc/xen that the C daemon opens ---- */
static const char *redirect(const char *p, char *buf, size_t n)
{
    if (!strcmp(p, "/proc/xen/xsd_port")) {
        path_of(buf, n, "xsd_port");
        return buf;
    }
    if (!strcmp(p, "/proc/xen/xsd_kva")) {
        path_of(buf, n, "dom0.ring");
        return buf;
    }
    return p;
}

#define WRAP_OPEN(name)                                                  \
    int name(const char *p, int flags, ...)                              \
    {                                                                    \
        static int (*real)(const char *, int, ...);                      \
        char buf[512];                                                   \
        mode_t mode = 0;                                                 \
        if (flags & (O_CREAT | O_TMPFILE)) {                             \
            va_list ap;                                                  \
            va_start(ap, flags);                                         \
            mode = va_arg(ap, mode_t);                                   \
            va_end(ap);                                                  \
        }                                                                \
        if (!real)                                                       \
            real = dlsym(RTLD_NEXT, #name);                              \
        return real(redirect(p, buf, sizeof(buf)), flags, mode);         \
    }
WRAP_OPEN(open)
WRAP_OPEN(open64)

/* containers often lack CAP_SYS_RESOURCE; oxenstored insists on nr_open fds */
int setrlimit(__rlimit_resource_t r, const struct rlimit *l) { (void)r; (void)l; return 0; }
int setrlimit64(__rlimit_resource_t r, const struct rlimit64 *l) { (void)r; (void)l; return 0; }

/* ---- ring pages ---- */
static void *map_ring(unsigned domid)
{
    char leaf[32], p[512];
    snprintf(leaf, sizeof(leaf), "dom%u.ring", domid);
    path_of(p, sizeof(p), leaf);
    int fd = open(p, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return NULL;
    if (ftruncate(fd, 4096) < 0) {
        close(fd);
        return NULL;
    }
    void *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return m == MAP_FAILED ? NULL : m;
}

void *xengnttab_open(void *l, unsigned f) { (void)l; (void)f; return malloc(8); }
int xengnttab_close(void *h) { free(h); return 0; }
int xengnttab_set_max_grants(void *h, uint32_t n) { (void)h; (void)n; return 0; }
void *xengnttab_map_grant_ref(void *h, uint32_t domid, uint32_t ref, int prot)
{
    (void)h; (void)ref; (void)prot;
    return map_ring(domid);
}
int xengnttab_unmap(void *h, void *a, uint32_t n) { (void)h; return munmap(a, n * 4096UL); }
void *xc_map_foreign_range(void *x, uint32_t domid, int size, int prot, unsigned long mfn)
{
    (void)x; (void)size; (void)prot; (void)mfn;
    return map_ring(domid);
}

/* ---- event channels ---- */
struct evt { int fd; };
static struct evt *the_evt;

void *xenevtchn_open(void *l, unsigned f)
{
    (void)l; (void)f;
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    struct evt *e = malloc(sizeof(*e));
    path_of(a.sun_path, sizeof(a.sun_path), "evtchn.sock");
    unlink(a.sun_path);
    e->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (e->fd < 0 || bind(e->fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        free(e);
        return NULL;
    }
    the_evt = e;
    return e;
}
void *xenevtchn_fdopen(void *l, int fd, unsigned f)
{
    (void)l; (void)f;
    struct evt *e = malloc(sizeof(*e));
    e->fd = fd;
    the_evt = e;
    return e;
}
int xenevtchn_close(void *h) { close(((struct evt *)h)->fd); free(h); return 0; }
int xenevtchn_fd(void *h) { return ((struct evt *)h)->fd; }
int xenevtchn_notify(void *h, uint32_t port)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    char leaf[32];
    if (port < PORT_BASE)
        return 0;
    snprintf(leaf, sizeof(leaf), "dom%u.evt", port - PORT_BASE);
    path_of(a.sun_path, sizeof(a.sun_path), leaf);
    (void)!sendto(((struct evt *)h)->fd, "!", 1, MSG_DONTWAIT, (struct sockaddr *)&a, sizeof(a));
    return 0;
}
int xenevtchn_bind_interdomain(void *h, uint32_t domid, uint32_t remote)
{
    (void)h; (void)remote;
    return PORT_BASE + (int)domid;
}
int xenevtchn_bind_virq(void *h, unsigned virq) { (void)h; (void)virq; return PORT_VIRQ; }
int xenevtchn_pending(void *h)
{
    uint32_t port;
    if (recv(((struct evt *)h)->fd, &port, sizeof(port), 0) != (ssize_t)sizeof(port))
        return -1;
    return (int)port;
}
int xenevtchn_unmask(void *h, uint32_t p) { (void)h; (void)p; return 0; }
int xenevtchn_unbind(void *h, uint32_t p) { (void)h; (void)p; return 0; }

/* ---- control interface ---- */
void *xc_interface_open(void *a, void *b, unsigned f) { (void)a; (void)b; (void)f; return malloc(8); }
int xc_interface_close(void *x) { free(x); return 0; }

static int exists(uint32_t domid)
{
    char leaf[32], p[512];
    if (domid == 0)
        return 1;
    snprintf(leaf, sizeof(leaf), "dom%u.ring", domid);
    path_of(p, sizeof(p), leaf);
    return access(p, F_OK) == 0;
}
/* only the leading fields matter to xenstored: domid, then a word of state bits */
int xc_domain_getinfo(void *x, uint32_t first, unsigned max, void *info)
{
    (void)x;
    if (!max || !exists(first))
        return 0;
    memset(info, 0, 12);
    *(uint32_t *)info = first;
    return 1;
}
int xc_domain_getinfolist(void *x, uint32_t first, unsigned max, void *info)
{
    (void)x;
    if (!max || !exists(first))
        return 0;
    memset(info, 0, 8);
    *(uint16_t *)info = (uint16_t)first;
    return 1;
}
