"""The KV cache as a state machine: whatever was appended, truncated, reset and forked, and in whatever splits, it holds
what a list per sequence holds, and answers like a cache that was filled at once.
"""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

H, D, CAPACITY = 1, 2, 12


class Cache(RuleBasedStateMachine):
    """Builds a script and, beside it, one list of tokens per sequence; a token is an integer."""

    caller = None
    strict = False

    @initialize(batch=st.integers(1, 3))
    def start(self, batch):
        self.script, self.inputs, self.key, self.token = [], {}, 0, 0
        self.model = [[] for _ in range(batch)]
        self.append([1] * batch, 1)

    def tensors(self, tokens):
        """Keys and values [B, T, H, d] that tell the token, and stay exact."""
        ids = np.array(tokens, dtype=np.float32)[:, :, None, None]
        k = np.concatenate([ids % 7 - 3, ids % 5 - 2], axis=-1)
        return k, np.concatenate([ids, -ids], axis=-1)

    def append(self, counts, width):
        tokens = []
        for b, count in enumerate(counts):
            row = [self.token + 1 + i for i in range(width)]
            self.token += width
            self.model[b] += row[:count]
            tokens.append(row)
        k, v = self.tensors(tokens)
        self.inputs[f"k.{self.key}"], self.inputs[f"v.{self.key}"] = k, v
        self.script.append(["append", str(self.key), list(counts)])
        self.key += 1

    def room(self):
        return CAPACITY - 1 - max(len(row) for row in self.model)

    @precondition(lambda self: self.room() > 0)
    @rule(data=st.data())
    def append_some(self, data):
        width = data.draw(st.integers(1, min(self.room(), 4)))
        self.append([data.draw(st.integers(0, width)) for _ in self.model], width)

    @rule(data=st.data())
    def truncate(self, data):
        lengths = [data.draw(st.integers(0, len(row))) for row in self.model]
        self.model = [row[:n] for row, n in zip(self.model, lengths, strict=True)]
        self.script.append(["truncate", lengths])

    @rule(data=st.data())
    def reset(self, data):
        rows = data.draw(st.one_of(st.none(), st.lists(st.integers(0, len(self.model) - 1), max_size=2)))
        for b in range(len(self.model)):
            if rows is None or b in rows:
                self.model[b] = []
        self.script.append(["reset", rows])

    @rule(data=st.data())
    def fork(self, data):
        rows = data.draw(st.lists(st.integers(0, len(self.model) - 1), min_size=1, max_size=3))
        self.model = [list(self.model[b]) for b in rows]
        self.script.append(["fork", rows])

    def run_script(self, script, inputs, batch, width):
        """Every backend through its protocol; the last append is attended to by queries [B, width, H, d]."""
        q = np.broadcast_to(np.array([1.0, -1.0], dtype=np.float32), (batch, width, H, D)).copy()
        inputs = {**inputs, "q.0": q}
        outputs = {"lengths": ("int64", (batch,)), "o.0": ("float32", (batch, width, H, D))}
        if not self.strict:
            held = ("float32", (batch, CAPACITY, H, D))
            outputs |= {"keys": held, "values": held}
        call = "kv_cache.strict" if self.strict else "kv_cache"
        return self.caller(call, inputs, outputs, script=[*script, ["attend", "0"]], capacity=CAPACITY)

    @invariant()
    def it_holds_what_the_lists_hold(self):
        batch = len(self.model)
        last = [[self.token + 1] for _ in self.model]
        k, v = self.tensors(last)
        split = self.run_script(
            [*self.script, ["append", "last", None]],
            {**self.inputs, "k.last": k, "v.last": v},
            batch,
            1,
        )
        rows = [[*row, self.token + 1] for row in self.model]
        longest = max(len(row) for row in rows)
        k, v = self.tensors([row + [0] * (longest - len(row)) for row in rows])
        counts = [len(row) for row in rows]
        whole = self.run_script([["append", "all", counts]], {"k.all": k, "v.all": v}, batch, longest)
        assert split["lengths"].tolist() == whole["lengths"].tolist() == counts
        for name in () if self.strict else ("keys", "values"):
            assert (split[name] == whole[name]).all()
        if not self.strict:
            for b, count in enumerate(counts):
                assert (split["values"][b, :count, 0, 0] == rows[b]).all()
        ends = np.stack([whole["o.0"][b, count - 1] for b, count in enumerate(counts)])
        if self.strict:
            assert (split["o.0"][:, 0].view(np.uint32) == ends.view(np.uint32)).all()
        else:
            assert np.abs(split["o.0"][:, 0] - ends).max() <= 1e-4 * max(1, self.token)


@pytest.mark.parametrize("strict", [False, True], ids=["ordinary", "strict"])
def test_any_split_is_one_pass(caller, strict):
    machine = type("Machine", (Cache,), {"caller": staticmethod(caller), "strict": strict})
    run_state_machine_as_test(machine)
