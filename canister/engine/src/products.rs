//! What a matrix kernel is asked to do: products of one set of matrices with one set of vectors, for several columns.
//!
//! ```text
//! out[c, row] (=, +=, -=) W[matrix] x[c, component]        for every product of a list and every column c
//! ```
//!
//! **Columns.** A kernel of N columns loads a weight once and keeps it in a local for all N. That is where a batch is
//! cheaper than its sequences alone: of five instructions for a vector of weights (address, load, operand, dot product,
//! addition) each further column needs four. Columns go in fours, then twos, then one.

/// What becomes of the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// out = sum
    Store,
    /// out += sum
    Add,
    /// out -= sum
    Subtract,
}

/// One product of a matrix with a component of x.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Which matrix.
    pub matrix: usize,
    /// Which component of x.
    pub component: usize,
    /// Which row of the output.
    pub row: usize,
    /// What to do there.
    pub into: Into,
}

/// A list of products, those of one matrix next to each other, and what it reaches.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    products: Vec<Product>,
    matrices: usize,
    components: usize,
    rows: usize,
}

impl Plan {
    /// From a list.
    pub fn new(products: Vec<Product>) -> Self {
        let most = |of: fn(&Product) -> usize| products.iter().map(|product| of(product) + 1).max().unwrap_or(0);
        let (matrices, components, rows) = (most(|p| p.matrix), most(|p| p.component), most(|p| p.row));
        Self { products, matrices, components, rows }
    }

    /// `count` matrices, each with the component of its own number, each into the row of its own number.
    pub fn one_each(count: usize) -> Self {
        Self::new((0..count).map(|g| Product { matrix: g, component: g, row: g, into: Into::Store }).collect())
    }
}

impl std::ops::Deref for Plan {
    type Target = [Product];
    fn deref(&self) -> &[Product] {
        &self.products
    }
}

/// Where x and out of a list of products are.
#[derive(Clone, Copy)]
pub struct Places {
    /// Columns.
    pub columns: usize,
    /// Distance between components of x.
    pub x_stride: usize,
    /// Distance between columns of x.
    pub x_column: usize,
    /// Distance between rows of out.
    pub out_stride: usize,
    /// Distance between columns of out.
    pub out_column: usize,
}

impl Places {
    /// Panics unless every product stays inside: `x` and `out` long, 2 `pairs` codes read and `rows` sums written at each.
    pub fn check(&self, plan: &Plan, x: usize, pairs: usize, out: usize, rows: usize, matrices: usize) {
        if plan.is_empty() {
            return;
        }
        assert!(self.columns > 0 && self.x_stride >= 2 * pairs && self.out_stride >= rows);
        let last = self.columns - 1;
        assert!(x >= last * self.x_column + (plan.components - 1) * self.x_stride + 2 * pairs);
        assert!(out >= last * self.out_column + (plan.rows - 1) * self.out_stride + rows);
        assert!(matrices >= plan.matrices);
    }
}

/// `$groups::<P, MODE, N>($arguments)` for a chunk of P = `$length` (8, 16, 24 or 32) pairs and what becomes of its sums.
macro_rules! for_chunk {
    ($groups:ident, $n:literal, $length:expr, $into:expr, $arguments:tt) => {
        match ($length, $into) {
            (8, Into::Store) => $groups::<8, 0, $n> $arguments,
            (8, Into::Add) => $groups::<8, 1, $n> $arguments,
            (8, Into::Subtract) => $groups::<8, 2, $n> $arguments,
            (16, Into::Store) => $groups::<16, 0, $n> $arguments,
            (16, Into::Add) => $groups::<16, 1, $n> $arguments,
            (16, Into::Subtract) => $groups::<16, 2, $n> $arguments,
            (24, Into::Store) => $groups::<24, 0, $n> $arguments,
            (24, Into::Add) => $groups::<24, 1, $n> $arguments,
            (24, Into::Subtract) => $groups::<24, 2, $n> $arguments,
            (_, Into::Store) => $groups::<32, 0, $n> $arguments,
            (_, Into::Add) => $groups::<32, 1, $n> $arguments,
            (_, Into::Subtract) => $groups::<32, 2, $n> $arguments,
        }
    };
}
pub(crate) use for_chunk;
