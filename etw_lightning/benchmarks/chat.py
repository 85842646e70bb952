"""Rows of chat: turns of a system, a user and an assistant, whose turns are learnt or forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from etw_lightning.benchmarks.source import as_list
from etw_lightning.benchmarks.tofu import Columns, read_row
from etw_lightning.schema import Example, InputError, Turn

__all__ = ["WhichTurns", "read_chat", "turn_by_turn"]

#: Which of the assistant's turns are labelled.
WhichTurns = Literal["last", "all"]


def read_chat(
    row: Mapping[str, Any], where: str, columns: Columns = Columns(), which: WhichTurns = "last"
) -> Example:
    """Turn a row of messages into an example whose answer is the assistant's last turn.

    Messages are ``{"role": ..., "content": ...}``: perhaps one of the system, then of user and
    assistant in turn, the assistant's last. Other columns of ``columns`` belong to the last answer.

    Args:
        row: One row as it is stored.
        where: File and row number, ``mine.jsonl/17``.
        columns: Names of the columns.
        which: Label the assistant's last turn or all of them.

    Raises:
        InputError: If the messages are of another form; names row, column and message.

    Example:
        >>> said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
        >>> read_chat({"messages": said}, "mine/0").answer
        'Hello.'
    """
    turns = _turns(as_list(row[columns.messages]), f"{where}: column {columns.messages!r}")
    *before, asked, said = turns
    flat = {**row, columns.question: asked.text, columns.answer: said.text}
    example = read_row(flat, where, columns=columns)
    labels_turns = which == "all" and any(turn.role == "assistant" for turn in before)
    return replace(example, turns=tuple(before), labels_turns=labels_turns)


def turn_by_turn(example: Example) -> list[Example]:
    """Return an example for each labelled turn of the assistant, ids ``mine/17/turn0``, ...

    Each is asked after all that was said before it. One whose last turn alone is labelled stays as
    it is.
    """
    if not example.labels_turns:
        return [example]
    asked = Turn("user", example.question or "")
    whole = (*example.turns, asked, Turn("assistant", example.answer))
    places = [place for place, turn in enumerate(whole) if turn.role == "assistant"]
    found = []
    for number, place in enumerate(places):
        name = f"{example.id}/turn{number}"
        if place == places[-1]:
            found.append(replace(example, id=name, labels_turns=False))
        else:
            question, answer = whole[place - 1].text, whole[place].text
            found.append(Example(name, answer, question, turns=whole[: place - 1]))
    return found


def _turns(messages: Any, where: str) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where} must hold a list of messages; got {messages!r:.60}.")
    turns = [_turn(message, f"{where}, message {n}") for n, message in enumerate(messages)]
    spoken = turns[1:] if turns[0].role == "system" else turns
    _check_order([turn.role for turn in spoken], len(turns) - len(spoken), where)
    return turns


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise InputError(f"{where} must be an object with role and content; got {message!r:.60}.")
    role, text = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise InputError(
            f"{where} must have the role system, user or assistant; got {role!r:.60}. Messages "
            "with other keys for role and content are to be renamed."
        )
    if not isinstance(text, str) or (role != "system" and not text.strip()):
        raise InputError(f"{where} must have a text as content; got {text!r:.60}.")
    unread = [
        key for key in message if key not in ("role", "content") and message[key] not in (None, [])
    ]
    if unread:
        raise InputError(
            f"{where} has {', '.join(map(str, unread))}, which would not be read; take it out."
        )
    return Turn(role, text)


def _check_order(roles: Sequence[str], first: int, where: str) -> None:
    """Refuse turns that are not of user and assistant in turn, the assistant's last."""
    for place, role in enumerate(roles):
        wanted = ("user", "assistant")[place % 2]
        if role != wanted:
            raise InputError(
                f"{where}, message {first + place} must be the {wanted}'s, as user and assistant "
                f"take turns; got the {role}'s."
            )
    if len(roles) < 2 or len(roles) % 2:
        raise InputError(
            f"{where} must end with an assistant's message, which is what is learnt or forgotten; "
            "take what stands behind it out."
        )
