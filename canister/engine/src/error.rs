//! Typed errors: one kind per class of `walsh.errors`, with a message that names the wrong value and the expected one.
//!
//! Nothing that comes from a file, a prompt or a caller's parameter may panic: it becomes one of these, crosses the
//! boundary as a negative code, and its text is read back with `walsh_error_message`.

use std::fmt;

/// The class of an error; the number is what an export returns, negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Kind {
    /// Bytes that break their format.
    Format = 1,
    /// A shape that does not fit.
    Shape = 2,
    /// A dtype that the operation does not take.
    DType = 3,
    /// NaN or infinity where finite numbers are needed.
    NonFinite = 4,
    /// A parameter outside its domain.
    Parameter = 5,
    /// An id or position outside its table.
    Range = 6,
    /// A model that strict arithmetic cannot have.
    Strict = 7,
    /// A fixed capacity would be exceeded.
    Capacity = 8,
}

/// An error with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Its class.
    pub kind: Kind,
    /// What was wrong, what was expected, what to do.
    pub message: String,
}

/// Result of everything that can be refused.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}Error: {}", self.kind, self.message)
    }
}

impl std::error::Error for Error {}

/// Make an `Error` of a kind with a formatted message.
macro_rules! error {
    ($kind:ident, $($text:tt)*) => {
        $crate::error::Error { kind: $crate::error::Kind::$kind, message: format!($($text)*) }
    };
}

/// Return an `Error` of a kind unless a condition holds; a comparison with NaN does not hold.
macro_rules! require {
    ($condition:expr, $kind:ident, $($text:tt)*) => {
        match $condition {
            true => {}
            false => return Err($crate::error::error!($kind, $($text)*)),
        }
    };
}

pub(crate) use {error, require};

/// A vector of `length` copies of `value`, or a capacity error where memory does not suffice: sizes come from files.
pub fn try_vec<T: Clone>(length: usize, value: T) -> Result<Vec<T>> {
    let mut vector = Vec::new();
    vector
        .try_reserve_exact(length)
        .map_err(|_| error!(Capacity, "{length} elements of {} bytes do not fit into memory", size_of::<T>()))?;
    vector.resize(length, value);
    Ok(vector)
}

/// Product of sizes, or a shape error where it overflows.
pub fn checked_product(sizes: &[usize]) -> Result<usize> {
    sizes
        .iter()
        .try_fold(1usize, |total, &size| total.checked_mul(size))
        .ok_or_else(|| error!(Shape, "sizes {sizes:?} multiply to more than the address space"))
}
