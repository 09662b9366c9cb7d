//! Tokenizers: characters, bytes, and GPT-2's byte-pair encoding (Radford et al., 2019), text to ids and back.
//!
//! GPT-2 splits text by
//!
//! ```text
//! '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! and merges the bytes of each piece, always the neighbours whose union has the lowest rank, the leftmost of equals. A
//! token's id is its rank. The end token is never produced by text.

use crate::container::Container;
use crate::error::{Result, error, require};
use crate::json::Json;
use crate::unicode::{is_letter, is_number, is_space};

/// Text to token ids and back.
pub enum Tokenizer {
    /// One id per character, in the order of the list.
    Characters(Vec<char>),
    /// One id per byte.
    Bytes,
    /// Byte pairs by rank.
    BytePairs(Ranks),
}

/// Tokens by rank, and ranks by token.
pub struct Ranks {
    /// All tokens, one after the other.
    bytes: Vec<u8>,
    /// Start of every token; one more at the end.
    starts: Vec<u32>,
    /// Ranks in the order of their tokens' bytes.
    sorted: Vec<u32>,
}

impl Ranks {
    /// From tokens in order of rank, each a length byte and so many bytes. All 256 single bytes must be among them.
    pub fn new(blob: &[u8]) -> Result<Self> {
        let (mut bytes, mut starts, mut at) = (Vec::new(), vec![0u32], 0);
        while at < blob.len() {
            let length = blob[at] as usize;
            require!(
                length > 0 && at + 1 + length <= blob.len(),
                Format,
                "token {} breaks its bytes",
                starts.len() - 1
            );
            bytes.extend_from_slice(&blob[at + 1..at + 1 + length]);
            starts.push(bytes.len() as u32);
            at += 1 + length;
        }
        let count = starts.len() - 1;
        let mut ranks = Self { bytes, starts, sorted: (0..count as u32).collect() };
        let mut sorted = std::mem::take(&mut ranks.sorted);
        sorted.sort_unstable_by(|&a, &b| ranks.token(a).cmp(ranks.token(b)));
        let twice = sorted.windows(2).find(|pair| ranks.token(pair[0]) == ranks.token(pair[1]));
        require!(twice.is_none(), Format, "two tokens have the same bytes");
        ranks.sorted = sorted;
        for byte in 0..=255u8 {
            require!(ranks.rank(&[byte]).is_some(), Format, "no token is the single byte {byte}");
        }
        Ok(ranks)
    }

    fn token(&self, rank: u32) -> &[u8] {
        &self.bytes[self.starts[rank as usize] as usize..self.starts[rank as usize + 1] as usize]
    }

    fn rank(&self, token: &[u8]) -> Option<u32> {
        self.sorted.binary_search_by(|&rank| self.token(rank).cmp(token)).ok().map(|at| self.sorted[at])
    }

    fn count(&self) -> usize {
        self.sorted.len()
    }

    /// Merge one piece.
    fn encode_piece(&self, piece: &[u8], ids: &mut Vec<u32>) {
        if let Some(rank) = self.rank(piece) {
            ids.push(rank);
            return;
        }
        // Parts start at `starts`; each with the rank of its union with the next, kept so that a merge looks up two only.
        let union = |starts: &[usize], i: usize| -> u32 {
            let end = starts.get(i + 2).copied().unwrap_or(piece.len());
            if i + 1 < starts.len() { self.rank(&piece[starts[i]..end]).unwrap_or(u32::MAX) } else { u32::MAX }
        };
        if piece.len() > 512 {
            return self.encode_long_piece(piece, ids);
        }
        let mut starts: Vec<usize> = (0..piece.len()).collect();
        let mut ranks: Vec<u32> = (0..piece.len()).map(|i| union(&starts, i)).collect();
        while let Some((at, _)) =
            ranks.iter().enumerate().filter(|(_, rank)| **rank < u32::MAX).min_by_key(|(_, rank)| **rank)
        {
            starts.remove(at + 1);
            ranks.remove(at + 1);
            ranks[at] = union(&starts, at);
            if at > 0 {
                ranks[at - 1] = union(&starts, at - 1);
            }
        }
        self.push_parts(piece, &starts, ids);
    }

    fn push_parts(&self, piece: &[u8], starts: &[usize], ids: &mut Vec<u32>) {
        for (i, &start) in starts.iter().enumerate() {
            let end = starts.get(i + 1).copied().unwrap_or(piece.len());
            // Every part is a single byte or a union that has a rank.
            ids.extend(self.rank(&piece[start..end]));
        }
    }

    /// The same merges with a queue and linked parts: a megabyte without a space must not take quadratic time.
    fn encode_long_piece(&self, piece: &[u8], ids: &mut Vec<u32>) {
        use std::cmp::Reverse;
        use std::collections::BinaryHeap;
        let length = piece.len();
        let mut next: Vec<usize> = (1..=length).collect();
        let mut previous: Vec<usize> = (0..length).map(|i| i.wrapping_sub(1)).collect();
        let mut alive = vec![true; length];
        let rank = |next: &[usize], start: usize| -> Option<(u32, usize)> {
            let middle = next[start];
            let end = *next.get(middle)?;
            self.rank(&piece[start..end]).map(|rank| (rank, end))
        };
        let mut queue: BinaryHeap<Reverse<(u32, usize, usize)>> =
            (0..length).filter_map(|i| rank(&next, i).map(|(r, end)| Reverse((r, i, end)))).collect();
        while let Some(Reverse((_, start, end))) = queue.pop() {
            let middle = if alive[start] { next[start] } else { length };
            // An entry is stale once one of its parts has been merged into another.
            if middle >= length || next[middle] != end {
                continue;
            }
            alive[middle] = false;
            next[start] = end;
            if end < length {
                previous[end] = start;
            }
            queue.extend(rank(&next, start).map(|(r, e)| Reverse((r, start, e))));
            if start > 0 {
                let before = previous[start];
                queue.extend(rank(&next, before).map(|(r, e)| Reverse((r, before, e))));
            }
        }
        let starts: Vec<usize> = (0..length).filter(|&i| alive[i]).collect();
        self.push_parts(piece, &starts, ids);
    }
}

/// Where the piece that starts at the beginning of `text` ends; text is not empty.
fn piece_end(text: &str) -> usize {
    let mut characters = text.char_indices();
    let Some((_, first)) = characters.next() else { return 0 };
    if first == '\'' {
        for suffix in ["s", "d", "m", "t", "ll", "ve", "re"] {
            if text[1..].starts_with(suffix) {
                return 1 + suffix.len();
            }
        }
    }
    let class = |c: char| match c {
        c if is_space(c) => 0,
        c if is_letter(c) => 1,
        c if is_number(c) => 2,
        _ => 3,
    };
    let run = |from: usize, kind: i32| {
        text[from..].char_indices().find(|&(_, c)| class(c) != kind).map_or(text.len(), |(at, _)| from + at)
    };
    let kind = class(first);
    if kind != 0 {
        return run(0, kind);
    }
    if first == ' ' {
        if let Some((at, second)) = characters.next() {
            if class(second) != 0 {
                return run(at, class(second));
            }
        }
    }
    let end = run(0, 0);
    if end == text.len() {
        return end;
    }
    // \s+(?!\S) gives one space back to the word that follows, unless it has but one.
    let last = text[..end].char_indices().next_back().map_or(0, |(at, _)| at);
    if last == 0 { end } else { last }
}

impl Tokenizer {
    /// The tokenizer of a file, if it has one.
    pub fn read(container: &Container, vocabulary: usize) -> Result<Option<Self>> {
        let record = &container.tokenizer;
        if *record == Json::Null {
            return Ok(None);
        }
        let kind = record.get("kind").and_then(Json::text).unwrap_or("");
        let tokenizer = match kind {
            "characters" => {
                let characters = record.get("characters").and_then(Json::text).unwrap_or("");
                let characters: Vec<char> = characters.chars().collect();
                let ascending = characters.windows(2).all(|pair| pair[0] < pair[1]);
                require!(
                    ascending && !characters.is_empty(),
                    Format,
                    "characters must be sorted, distinct and not empty"
                );
                Tokenizer::Characters(characters)
            }
            "bytes" => Tokenizer::Bytes,
            "gpt2" => Tokenizer::BytePairs(Ranks::new(&container.bytes("tokenizer.tokens")?)?),
            other => return Err(error!(Format, "tokenizer kind {other:?}: expected characters, bytes or gpt2")),
        };
        let ids = tokenizer.end_token();
        require!(ids <= vocabulary, Format, "a tokenizer of {ids} tokens for a vocabulary of {vocabulary}");
        Ok(Some(tokenizer))
    }

    /// The id after the last token of text: it separates documents and stands for no bytes.
    pub fn end_token(&self) -> usize {
        match self {
            Tokenizer::Characters(characters) => characters.len(),
            Tokenizer::Bytes => 256,
            Tokenizer::BytePairs(ranks) => ranks.count(),
        }
    }

    /// Bytes that the tokenizer takes in memory.
    pub fn memory(&self) -> usize {
        match self {
            Tokenizer::Characters(characters) => 4 * characters.len(),
            Tokenizer::Bytes => 0,
            Tokenizer::BytePairs(ranks) => ranks.bytes.len() + 4 * (ranks.starts.len() + ranks.sorted.len()),
        }
    }

    /// Ids of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Tokenizer::Characters(characters) => text
                .chars()
                .enumerate()
                .map(|(position, c)| match characters.binary_search(&c) {
                    Ok(id) => Ok(id as u32),
                    Err(_) => Err(error!(
                        Range,
                        "character {c:?} at position {position} is not among the {} that this model was trained on",
                        characters.len()
                    )),
                })
                .collect(),
            Tokenizer::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Tokenizer::BytePairs(ranks) => {
                let (mut ids, mut rest) = (Vec::new(), text);
                while !rest.is_empty() {
                    let (piece, others) = rest.split_at(piece_end(rest));
                    ranks.encode_piece(piece.as_bytes(), &mut ids);
                    rest = others;
                }
                Ok(ids)
            }
        }
    }

    /// The bytes of one id; none for the end token.
    pub fn token(&self, id: usize, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.clear();
        let end = self.end_token();
        require!(id <= end, Range, "token {id}: the vocabulary has ids 0 to {end}");
        if id < end {
            match self {
                Tokenizer::Characters(characters) => {
                    bytes.extend_from_slice(characters[id].encode_utf8(&mut [0; 4]).as_bytes());
                }
                Tokenizer::Bytes => bytes.push(id as u8),
                Tokenizer::BytePairs(ranks) => bytes.extend_from_slice(ranks.token(id as u32)),
            }
        }
        Ok(())
    }
}

/// Bytes to text as they arrive: a character is shown when its last byte is there, bytes that are no UTF-8 become U+FFFD.
#[derive(Clone, Default)]
pub struct Stream {
    pending: Vec<u8>,
}

impl Stream {
    /// Text that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.pending[done..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    done = self.pending.len();
                    break;
                }
                Err(error) => {
                    let valid = done + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[done..valid]));
                    done = valid;
                    match error.error_len() {
                        Some(length) => {
                            text.push('\u{fffd}');
                            done += length;
                        }
                        None => break,
                    }
                }
            }
        }
        self.pending.drain(..done);
        text
    }

    /// What is left: U+FFFD for an unfinished character, else nothing.
    pub fn finish(&mut self) -> &'static str {
        let unfinished = !self.pending.is_empty();
        self.pending.clear();
        if unfinished { "\u{fffd}" } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<&str> {
        let (mut rest, mut found) = (text, Vec::new());
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(piece_end(rest));
            found.push(piece);
            rest = others;
        }
        found
    }

    #[test]
    fn text_is_split_as_the_pattern_says() {
        assert_eq!(pieces("Hello  world's 42nd  "), ["Hello", " ", " world", "'s", " 42", "nd", "  "]);
        assert_eq!(pieces("a \n b\n\nc"), ["a", " \n", " b", "\n", "\n", "c"]);
        assert_eq!(
            pieces("caf\u{e9} \u{4f60}\u{597d}!? \u{1f600}"),
            ["caf\u{e9}", " \u{4f60}\u{597d}", "!?", " \u{1f600}"]
        );
        assert_eq!(pieces("'ll 'x ''s"), ["'ll", " '", "x", " ''", "s"]);
        assert_eq!(pieces("\u{a0}x\u{a0}\u{a0}y\tz"), ["\u{a0}", "x", "\u{a0}", "\u{a0}", "y", "\t", "z"]);
    }

    fn ranks() -> Ranks {
        let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        tokens.extend(["ab", "abab", "ba", "bab", "aa", "aaaa", "ababab"].map(|t| t.as_bytes().to_vec()));
        Ranks::new(&tokens.iter().flat_map(|t| [&[t.len() as u8][..], t].concat()).collect::<Vec<u8>>()).unwrap()
    }

    #[test]
    fn long_pieces_merge_like_short_ones() {
        let ranks = ranks();
        for seed in 1..40usize {
            let piece: Vec<u8> =
                (0..200).map(|i| if (i * i * seed / 7 + i / 3) % 3 == 0 { b'b' } else { b'a' }).collect();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            ranks.encode_piece(&piece, &mut short);
            ranks.encode_long_piece(&piece, &mut long);
            assert_eq!(short, long);
        }
    }

    #[test]
    fn broken_token_lists_are_refused() {
        assert!(Ranks::new(&[]).is_err(), "no bytes");
        assert!(Ranks::new(&[0]).is_err(), "empty token");
        assert!(Ranks::new(&[3, 1, 2]).is_err(), "truncated");
        let twice: Vec<u8> = (0..=255u8).chain([7]).flat_map(|b| [1, b]).collect();
        assert!(Ranks::new(&twice).is_err(), "a token twice");
    }

    #[test]
    fn streams_show_whole_characters_only() {
        let mut stream = Stream::default();
        let text = "caf\u{e9} \u{1f600}\u{4f60}";
        let shown: String = text.bytes().map(|byte| stream.push(&[byte])).collect();
        assert_eq!(shown, text);
        assert_eq!(stream.push(&[0xf0, 0x9f]), "");
        assert_eq!(stream.push(b"x"), "\u{fffd}x");
        assert_eq!(stream.push(&[0xe4, 0xbd]) + stream.finish(), "\u{fffd}");
        assert_eq!(stream.push(&[0xff, b'a']), "\u{fffd}a");
    }
}
