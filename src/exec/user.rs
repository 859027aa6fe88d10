//! Users and groups by name or number, from /etc/passwd and /etc/group, which a small guest may lack.

use std::fs;

use crate::sys::process::Identity;

/// The identity that `USER`, `USER:GROUP` or `:GROUP` names. Names are looked up; numbers need no entry. A user without GROUP has the groups
/// that the files give: all of them for one with an entry, the group of the same number for a bare number. The error says who is missing.
pub fn look_up(text: &str) -> Result<Identity, String> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    find(text, &passwd, &group)
}

/// Name and home of a user that is known by name or number. `None` for a bare number without an entry.
pub fn name_and_home(text: &str) -> Option<(String, String)> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = text.split(':').next().unwrap_or_default();
    let entry = rows(&passwd).find(|row| row.first() == Some(&user) || row.get(2) == Some(&user))?;
    Some((entry.first()?.to_string(), entry.get(5)?.to_string()))
}

fn find(text: &str, passwd: &str, groups: &str) -> Result<Identity, String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let entry = rows(passwd).find(|row| row.first() == Some(&user) || row.get(2) == Some(&user));
    let number = |row: &[&str], column: usize| row.get(column).and_then(|text| text.parse::<u32>().ok());
    let mut identity = match (&entry, user.parse::<u32>()) {
        _ if user.is_empty() => Identity::default(),
        (Some(row), _) => {
            let (uid, gid) = number(row, 2).zip(number(row, 3)).ok_or_else(|| format!("user {user}: bad entry"))?;
            Identity { uid, gid, groups: Vec::new() }
        }
        (None, Ok(uid)) => Identity { uid, gid: uid, groups: Vec::new() },
        (None, Err(_)) => return Err(format!("user {user}: no such user")),
    };
    match group {
        Some(group) => {
            let entry = rows(groups).find(|row| row.first() == Some(&group) || row.get(2) == Some(&group));
            let gid = entry.and_then(|row| number(&row, 2)).or_else(|| group.parse().ok());
            identity.gid = gid.ok_or_else(|| format!("group {group}: no such group"))?;
            identity.groups.push(identity.gid);
        }
        None => {
            identity.groups.push(identity.gid);
            let name = entry.as_ref().and_then(|row| row.first().copied()).unwrap_or_default();
            let member = |row: &Vec<&str>| row.get(3).is_some_and(|list| list.split(',').any(|member| member == name));
            let more = rows(groups).filter(|row| !name.is_empty() && member(row)).filter_map(|row| number(&row, 2));
            identity.groups.extend(more.filter(|gid| *gid != identity.gid).collect::<Vec<_>>());
        }
    }
    Ok(identity)
}

fn rows(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100:Ann:/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\nvideo:x:44:bob,ann\naudio:x:29:joann\n";

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let is = |text: &str, uid, gid, groups: &[u32]| {
            assert_eq!(find(text, PASSWD, GROUP), Ok(Identity { uid, gid, groups: groups.to_vec() }), "{text}");
        };
        is("ann", 1000, 100, &[100, 44]);
        is("1000", 1000, 100, &[100, 44]);
        is("ann:video", 1000, 44, &[44]);
        is("ann:7", 1000, 7, &[7]);
        is("4242", 4242, 4242, &[4242]);
        is(":video", 0, 44, &[44]);
        assert_eq!(find("eve", PASSWD, GROUP), Err("user eve: no such user".to_owned()));
        assert_eq!(find("ann:nobody", PASSWD, GROUP), Err("group nobody: no such group".to_owned()));
        assert_eq!(find("ann", "", ""), Err("user ann: no such user".to_owned()));
    }
}
