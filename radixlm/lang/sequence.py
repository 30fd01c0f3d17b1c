"""What a branch holds while it runs: text in pieces, and the messages and scopes in it.

Literal text is tokenised as one between generated pieces, wherever a program was cut in order to run it: so the tokens of
a sequence depend on the program alone.
"""

from __future__ import annotations

from radixlm.lang.chat import Chat
from radixlm.lang.ir import Close, Context, Open, Piece, Text, Turn


class Sequence:
    """A mutable `Context`. `copy` is cheap: pieces are shared."""

    def __init__(self, context: Context) -> None:
        self.pieces = list(context.pieces)
        self.turns = list(context.turns)
        self.framed = context.framed
        self.scopes = dict(context.scopes)
        self.length = sum(len(piece.text) for piece in self.pieces)

    def freeze(self) -> Context:
        """As it stands now."""
        return Context(tuple(self.pieces), tuple(self.turns), self.framed, dict(self.scopes))

    def copy(self) -> Sequence:
        """Another one that goes on from here."""
        return Sequence(self.freeze())

    @property
    def text(self) -> str:
        """The text as a whole."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def is_open(self) -> bool:
        """Whether a message is open."""
        return bool(self.turns) and self.turns[-1].end < 0

    def apply(self, node: Text | Open | Close, chat: Chat) -> str:
        """What a constant node writes. Returns what was added."""
        if isinstance(node, Text):
            return self.add(node.text)
        return self.open(node.role, chat) if isinstance(node, Open) else self.close(chat)

    def add(self, text: str) -> str:
        """Literal text; what begins a message loses the white space before it. Returns what was added."""
        generated = bool(self.pieces) and self.pieces[-1].tokens is not None  # even if it is empty
        if self.is_open and self.turns[-1].start == self.length and not generated:
            text = text.lstrip()
        self._append(text)
        return text

    def generated(self, text: str, tokens: list[int]) -> None:
        """A generated piece."""
        self.pieces.append(Piece(text, tuple(tokens)))
        self.length += len(text)

    def open(self, role: str, chat: Chat) -> str:
        """A message begins. Returns the frame that was added."""
        roles = (*(turn.role for turn in self.turns), role)
        frame = chat.before(roles)
        self.framed = self.framed or not self.length
        self._append(frame)
        self.turns.append(Turn(role, self.length))
        return frame

    def close(self, chat: Chat) -> str:
        """The open message ends. Returns the frame that was added."""
        turn = self.turns[-1]
        if chat.trims:
            self._trim(turn.start)
        self.turns[-1] = Turn(turn.role, turn.start, self.length)
        frame = chat.after(tuple(turn.role for turn in self.turns))
        self._append(frame)
        return frame

    def rewrite(self, old: str, new: str) -> None:
        """The last generated piece that reads `old` becomes literal text that reads `new`."""
        for index in range(len(self.pieces) - 1, -1, -1):
            if self.pieces[index].tokens is not None and self.pieces[index].text == old:
                break
        else:
            return
        start, shift = sum(len(piece.text) for piece in self.pieces[:index]), len(new) - len(old)
        after, self.pieces, self.length = self.pieces[index + 1 :], self.pieces[:index], start
        self._append(new)
        for piece in after:
            if piece.tokens is None:
                self._append(piece.text)
            else:
                self.generated(piece.text, list(piece.tokens))

        def moved(at: int) -> int:
            return at + shift if at > start else at

        self.turns = [Turn(turn.role, moved(turn.start), moved(turn.end)) for turn in self.turns]
        self.scopes = {name: moved(at) for name, at in self.scopes.items()}

    def messages(self) -> list[dict[str, str]]:
        """Role and content of each message, the open one included."""
        text = self.text
        return [
            {"role": turn.role, "content": text[turn.start : turn.end if turn.end >= 0 else None]}
            for turn in self.turns
        ]

    def _append(self, text: str) -> None:
        if not text:
            return
        if self.pieces and self.pieces[-1].tokens is None:
            self.pieces[-1] = Piece(self.pieces[-1].text + text)
        else:
            self.pieces.append(Piece(text))
        self.length += len(text)

    def _trim(self, start: int) -> None:
        if self.pieces and self.pieces[-1].tokens is None:
            last = self.pieces[-1].text
            kept = max(len(last.rstrip()), len(last) - (self.length - start))
            self.pieces[-1] = Piece(last[:kept])
            self.length -= len(last) - kept
