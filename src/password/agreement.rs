//! The key exchange of the OpenStack guest agent: Diffie-Hellman modulo the prime 2^107 - 1, with the generator 5.
//!
//! It hides a password from who glances at a log, and from nobody who wants it: with 107 bits, and p - 1 made of small factors, the private
//! key comes out of the public one in seconds. Source: openstack-guest-agents-unix 1.39.1.

/// The prime 2^107 - 1.
const P: u128 = (1 << 107) - 1;

const GENERATOR: u128 = 5;

/// Bits of one half of a number.
const HALF: u32 = 64;

/// Our side of one exchange.
pub struct Agreement {
    private: u128,
}

impl Agreement {
    /// Of random bytes, read as one big number, most significant first.
    pub fn of(private: [u8; 16]) -> Agreement {
        Agreement { private: u128::from_be_bytes(private) }
    }

    /// What the other side is told.
    pub fn public(&self) -> u128 {
        power(GENERATOR, self.private)
    }

    /// What both sides know, for the other side's public key.
    pub fn secret(&self, public: u128) -> u128 {
        power(public, self.private)
    }
}

/// A public key in decimal digits, blanks around it. `None` for what is none: 0 and the multiples of the prime make no secret.
pub fn public_key(text: &str) -> Option<u128> {
    let digits = text.trim();
    let number = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    number.filter(|number| (1..P).contains(number))
}

fn power(base: u128, mut exponent: u128) -> u128 {
    let (mut result, mut square) = (1, reduce(base));
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = multiply(result, square);
        }
        square = multiply(square, square);
        exponent >>= 1;
    }
    result
}

/// A product modulo P, of two numbers that are below it.
fn multiply(a: u128, b: u128) -> u128 {
    let low_half = (1 << HALF) - 1;
    let ((a_high, a_low), (b_high, b_low)) = ((a >> HALF, a & low_half), (b >> HALF, b & low_half));
    // The product is high * 2^128 + middle * 2^64 + low, with high below 2^86 and middle below 2^108.
    let (high, middle, low) = (a_high * b_high, a_high * b_low + a_low * b_high, a_low * b_low);
    // 2^107 is 1: so 2^128 is 2^21, and of middle * 2^64 what is above 2^43 comes down by 107 bits.
    let bits = 107 - HALF;
    let middle = (middle >> bits) + ((middle & ((1 << bits) - 1)) << HALF);
    reduce(reduce(low) + middle + (high << 21))
}

/// A number below 2^128 modulo P.
fn reduce(number: u128) -> u128 {
    let folded = (number & P) + (number >> 107);
    if folded >= P { folded - P } else { folded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_exchange_comes_out() {
        let mut host = [0; 16];
        host[6..].copy_from_slice(&[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23]);
        let host = Agreement::of(host);
        let guest = Agreement::of(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes());
        assert_eq!(host.public(), 128_492_706_489_454_800_633_959_484_585_958);
        assert_eq!(guest.public(), 10_213_771_857_304_028_832_860_390_748_511);
        let shared = 42_212_498_014_643_735_436_438_456_950_707;
        assert_eq!((guest.secret(host.public()), host.secret(guest.public())), (shared, shared));
    }

    #[test]
    fn numbers_at_the_edges_multiply_right() {
        for number in [0, 1, 2, P - 1, P / 2, (1 << 64) - 1, 1 << 64, (1 << 64) + 1, 1 << 106] {
            // By addition alone, bit by bit.
            let slow = |a: u128, b: u128| {
                (0..107).rev().fold(0, |sum, bit| reduce(reduce(sum + sum) + if b >> bit & 1 == 1 { a } else { 0 }))
            };
            for other in [0, 1, 3, P - 1, P - 2, (1 << 64) - 1, 1 << 105, 0x5_5555_5555_5555_5555_5555_5555] {
                assert_eq!(multiply(number, other), slow(number, other), "{number} * {other}");
            }
        }
        assert_eq!([reduce(P), reduce(P + 1), reduce(u128::MAX)], [0, 1, u128::MAX % P]);
        // Fermat: what is no multiple of the prime has this order.
        assert_eq!([power(5, P - 1), power(P - 2, P - 1), power(7, 0)], [1, 1, 1]);
    }

    #[test]
    fn public_keys_are_decimal_numbers_below_the_prime() {
        assert_eq!(public_key(" 42\n"), Some(42));
        assert_eq!(public_key("162259276829213363391578010288126"), Some(P - 1));
        for none in ["", "0", "-1", "+1", "1.0", "0x10", "a", "162259276829213363391578010288127", "1 2", "٣"] {
            assert_eq!(public_key(none), None, "{none:?}");
        }
        assert_eq!(public_key(&"9".repeat(1000)), None);
    }
}
