//! The configuration of a model (SPEC.md, *forward*): known keys, defaults, and what follows from them.

use crate::container::Container;
use crate::error::{Error, Result, error, require};
use crate::head_mixer::Algebra;
use crate::json::Json;

/// A complete configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the linear layers and mixers.
    pub algebra: Algebra,
    /// Blocks.
    pub layers: usize,
    /// H.
    pub heads: usize,
    /// C.
    pub width: usize,
    /// V.
    pub vocabulary: usize,
    /// Most tokens of a sequence.
    pub block_size: usize,
    /// Whether heads are mixed.
    pub head_mixing: bool,
    /// 0, or 2 or 3 tables.
    pub hash_embeddings: usize,
    /// Whether a hash embedding is multiplied by sqrt(C).
    pub hash_scale: bool,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// Whether activations are left as they are: ordinary float32 arithmetic.
    pub float_activations: bool,
    /// Width of the feed-forward.
    pub hidden: usize,
}

const KEYS: [&str; 16] = [
    "algebra",
    "n_layer",
    "n_head",
    "n_embd",
    "vocab_size",
    "block_size",
    "head_mixing",
    "hash_embeddings",
    "hash_scale",
    "tied_head",
    "ternary",
    "rule",
    "ste_clip",
    "activation_bits",
    "hadamard_size",
    "ffn_hidden",
];

/// Largest size of anything.
const MAX_SIZE: usize = 1 << 24;
/// Widest layer: every integer sum of a forward pass then fits 32 bits, int8 times int8 over all features included.
pub const MAX_WIDTH: usize = 1 << 17;

fn bad(key: &str, value: &Json, expected: &str) -> Error {
    error!(Parameter, "config {key} is {value:?}: expected {expected}")
}

fn size(json: &Json, key: &str, least: usize, default: Option<usize>) -> Result<usize> {
    match (json.get(key), default) {
        (None | Some(Json::Null), Some(default)) => Ok(default),
        (None, None) => Err(error!(Parameter, "config key {key:?} is missing: expected {KEYS:?}")),
        (Some(value), _) => value
            .size()
            .filter(|size| (least..=MAX_SIZE).contains(size))
            .ok_or_else(|| bad(key, value, &format!("an integer from {least} to {MAX_SIZE}"))),
    }
}

fn flag(json: &Json, key: &str, default: bool) -> Result<bool> {
    json.get(key).map_or(Ok(default), |value| value.bool().ok_or_else(|| bad(key, value, "true or false")))
}

fn multiple(key: &str, value: usize, of: usize) -> Result<()> {
    require!(value.is_multiple_of(of), Parameter, "config {key} is {value}: expected a multiple of {of}");
    Ok(())
}

impl Config {
    /// Check a configuration and fill in its defaults.
    pub fn read(json: &Json) -> Result<Self> {
        let members = json.members().ok_or_else(|| bad("", json, "an object"))?;
        if let Some((key, _)) = members.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
            return Err(error!(Parameter, "config key {key:?} is unknown: expected {KEYS:?}"));
        }
        let name = json.get("algebra").ok_or_else(|| error!(Parameter, "config key \"algebra\" is missing"))?;
        let name = name.text().ok_or_else(|| bad("algebra", name, "a name"))?;
        let algebra = Algebra::by_name(name, size(json, "hadamard_size", 1, Some(32))?)?;
        let bits = json.get("activation_bits").unwrap_or(&Json::Integer(8));
        let float_activations = *bits == Json::Null;
        require!(
            float_activations || *bits == Json::Integer(8),
            Parameter,
            "config activation_bits is {bits:?}: expected 8 or null"
        );
        require!(flag(json, "ternary", true)?, Strict, "ternary is false: strict arithmetic needs ternary weights");
        let (n, width) = (algebra.size(), size(json, "n_embd", 1, None)?);
        // int(8 c / 3), rounded up to a multiple of n.
        let hidden = size(json, "ffn_hidden", 1, Some((8 * width / 3).div_ceil(n) * n))?;
        let config = Self {
            algebra,
            layers: size(json, "n_layer", 0, None)?,
            heads: size(json, "n_head", 1, None)?,
            width,
            vocabulary: size(json, "vocab_size", 1, None)?,
            block_size: size(json, "block_size", 1, None)?,
            head_mixing: flag(json, "head_mixing", false)?,
            hash_embeddings: size(json, "hash_embeddings", 0, Some(0))?,
            hash_scale: flag(json, "hash_scale", false)?,
            tied_head: flag(json, "tied_head", true)?,
            float_activations,
            hidden,
        };
        require!(matches!(config.hash_embeddings, 0 | 2 | 3), Parameter, "hash_embeddings: expected 0, 2 or 3");
        require!(
            !config.hash_scale || config.hash_embeddings > 0,
            Parameter,
            "config hash_scale is true without hash_embeddings"
        );
        let dense = algebra == Algebra::CayleyDickson(1);
        require!(
            !(config.head_mixing && dense),
            Parameter,
            "config head_mixing is true for dense: real numbers mix no heads"
        );
        multiple("n_embd", width, n)?;
        multiple("n_embd", width, 2 * config.heads)?;
        multiple("ffn_hidden", hidden, n)?;
        if config.head_mixing {
            multiple("n_head", config.heads, n)?;
        }
        let widest = width.max(hidden);
        require!(widest <= MAX_WIDTH, Parameter, "{widest} features: expected at most {MAX_WIDTH}");
        Ok(config)
    }

    /// d.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// Every linear of a block: (name, N, K) per component.
    pub fn linears(&self) -> [(&'static str, usize, usize); 7] {
        let n = self.algebra.size();
        let (c, f) = (self.width / n, self.hidden / n);
        [
            ("attention.wq", c, c),
            ("attention.wk", c, c),
            ("attention.wv", c, c),
            ("attention.wo", c, c),
            ("ffn.gate", f, c),
            ("ffn.up", f, c),
            ("ffn.down", c, f),
        ]
    }

    /// Names of all weights, to find superfluous ones; table rows are in the file.
    pub fn check_names(&self, container: &Container) -> Result<()> {
        let hadamard = matches!(self.algebra, Algebra::Hadamard(_));
        let mut known: Vec<String> = ["rope.inv_freq", "norm.weight", "tokenizer.tokens"].map(String::from).to_vec();
        let mut table = |stem: String| known.extend(["codes", "scale"].map(|part| format!("{stem}.{part}")));
        if self.hash_embeddings > 0 {
            (0..self.hash_embeddings).for_each(|i| table(format!("embedding.tables.{i}")));
        } else {
            table("embedding".into());
        }
        if !self.tied_head {
            table("head".into());
        }
        if self.hash_embeddings > 0 {
            known.extend(["embedding.importance", "embedding.indices"].map(String::from));
        }
        for layer in 0..self.layers.min(container.names().count()) {
            let block = format!("blocks.{layer}");
            known.extend(["attention_norm", "ffn_norm"].map(|norm| format!("{block}.{norm}.weight")));
            for (name, _, _) in self.linears() {
                known.extend(["codes", "beta"].map(|part| format!("{block}.{name}.{part}")));
                if hadamard {
                    known.push(format!("{block}.{name}.alpha"));
                }
            }
            if self.head_mixing {
                known.extend(["codes", "scale", "beta"].map(|part| format!("{block}.mixer.{part}")));
            }
        }
        known.sort_unstable();
        let unknown = container.names().find(|name| known.binary_search_by(|k| k.as_str().cmp(name)).is_err());
        require!(unknown.is_none(), Parameter, "weight {:?} is superfluous; remove it", unknown.unwrap_or(""));
        Ok(())
    }
}
