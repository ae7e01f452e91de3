"""Innermost loops of assembly text, PTX or SASS: labels and branches make a graph, back edges make loops."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_LABEL = re.compile(r"^([.$\w]+):(?!:)")  # shared::cta is part of a name
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*")  # SASS holds addresses and encodings in comments
_GUARD = re.compile(r"^@!?%?\w+\s+")
_BRANCH = re.compile(r"^(?:bra|BRA)\b[^;]*?`?\(?([.$\w]+)\)?\s*;")
_JUMP = re.compile(r"\b(?:bra|BRA|brx|BRX|JMP|JMX)\b")
_INSTRUCTION = re.compile(r"^(?:@!?%?\w+\s+)?[A-Za-z]")
_WAIT = re.compile(r"^(?:mbarrier\.(?:try|test)_wait|SYNCS\.PHASECHK)\b")
_IDLE = re.compile(r"^(?:nanosleep|NANOSLEEP|NOP|MOV|IMAD\.(?:MOV|U32))\b")
_ENDS = re.compile(r"^(?:ret|exit|trap|EXIT|RET)\b")


class UnclearFlowError(ValueError):
    """A jump whose target the text does not name."""


@dataclass(slots=True)
class Block:
    """Instructions that run one after the other; `targets` are the blocks that may follow."""

    instructions: list[str] = field(default_factory=list)
    targets: set[int] = field(default_factory=set)


def innermost_loops(text: str) -> list[list[str]]:
    """Instructions of each loop that holds no other loop, in the order of their headers.

    A loop that does nothing but wait for a barrier counts as an instruction of the loop around it.

    Raises:
        UnclearFlowError: an indirect branch, a branch to a label that is not in the text, or what is neither
            label nor instruction.
    """
    blocks = control_flow(text)
    loops = {header: body for header, body in _natural_loops(blocks).items() if not _is_wait(blocks, body)}
    return [
        [instruction for idx in sorted(body) for instruction in blocks[idx].instructions]
        for header, body in sorted(loops.items())
        if not any(other in body for other in loops if other != header)
    ]


def control_flow(text: str) -> list[Block]:
    """Basic blocks in the order of the text. Labels inside braces (inline assembly) are local to them.

    A block that nothing leads to begins a function, or is dead: then it leads nowhere either.
    """
    blocks = [Block()]
    labels: dict[tuple[str, tuple[int, ...]], int] = {}
    jumps: list[tuple[int, str, tuple[int, ...]]] = []
    scope: tuple[int, ...] = ()
    num_scopes = 0
    live = True

    def begin_block(*, follows: bool) -> None:
        if follows:
            blocks[-1].targets.add(len(blocks))
        blocks.append(Block())

    for statement in _statements(text):
        if statement == "{":
            if not scope:
                begin_block(follows=False)
                live = True
            num_scopes += 1
            scope = (*scope, num_scopes)
        elif statement == "}":
            scope = scope[:-1]
        elif label := _LABEL.match(statement):
            begin_block(follows=live)
            live = True
            labels[label[1], scope] = len(blocks) - 1
        else:
            if not _INSTRUCTION.match(statement):
                raise UnclearFlowError(f"not an instruction: {statement[:80]}")
            blocks[-1].instructions.append(statement)
            branch = _branch_target(statement)
            if branch and live:
                jumps.append((len(blocks) - 1, branch, scope))
            if branch or _ENDS.match(_GUARD.sub("", statement)):
                live = live and _is_conditional(statement)
                begin_block(follows=live)
    for source, name, where in jumps:
        blocks[source].targets.add(_resolve(labels, name, where))
    return blocks


def _branch_target(statement: str) -> str:
    branch = _BRANCH.match(_GUARD.sub("", statement))
    if branch is None and _JUMP.search(statement):
        raise UnclearFlowError(f"a branch without a label: {statement}")
    return branch[1] if branch else ""


def _is_conditional(statement: str) -> bool:
    """Guarded, or with the condition as an operand, as SASS has it: `BRA.U UP0, `(.L_x_1)`."""
    return bool(_GUARD.match(statement)) or (bool(_BRANCH.match(statement)) and "," in statement)


def _is_wait(blocks: Sequence[Block], body: set[int]) -> bool:
    """Each instruction asks the barrier, jumps or makes room."""
    instructions = [_GUARD.sub("", line) for idx in body for line in blocks[idx].instructions]
    return any(_WAIT.match(line) for line in instructions) and all(
        _WAIT.match(line) or _BRANCH.match(line) or _IDLE.match(line) for line in instructions
    )


def _resolve(labels: dict[tuple[str, tuple[int, ...]], int], name: str, scope: tuple[int, ...]) -> int:
    for depth in range(len(scope), -1, -1):
        if (name, scope[:depth]) in labels:
            return labels[name, scope[:depth]]
    raise UnclearFlowError(f"no label {name}")


def _statements(text: str) -> Iterator[str]:
    """Labels, braces and instructions, one each; comments and directives dropped."""
    pending = ""
    for line in _COMMENT.sub("", text).splitlines():
        rest = line.strip()
        while rest:
            if pending:
                part, semicolon, rest = rest.partition(";")
                pending = f"{pending} {part.strip()}"
                if semicolon:
                    yield f"{pending};"
                    pending = ""
            elif rest[0] in "{}()":
                if rest[0] in "{}":
                    yield rest[0]
                rest = rest[1:]
            elif label := _LABEL.match(rest):
                yield label[0]
                rest = rest[label.end() :]
            elif rest[0] == ".":
                _, _, rest = rest.partition(";")
            else:
                part, semicolon, rest = rest.partition(";")
                if semicolon:
                    yield f"{part.strip()};"
                else:
                    pending = part.strip()
            rest = rest.lstrip()


def _natural_loops(blocks: Sequence[Block]) -> dict[int, set[int]]:
    """Body of each loop by its header, header included; loops that share a header are one."""
    predecessors = defaultdict(set)
    for idx, block in enumerate(blocks):
        for target in block.targets:
            predecessors[target].add(idx)
    dominators = _dominators(len(blocks), predecessors)
    loops: dict[int, set[int]] = {}
    for idx, block in enumerate(blocks):
        for header in block.targets & dominators[idx]:
            loops.setdefault(header, {header}).update(_reaching(idx, header, predecessors))
    return loops


def _dominators(count: int, predecessors: dict[int, set[int]]) -> list[set[int]]:
    """Blocks that every path to a block passes, itself included; blocks without predecessors are entries."""
    everything = set(range(count))
    dominators = [everything if predecessors[idx] else {idx} for idx in range(count)]
    changed = True
    while changed:
        changed = False
        for idx in range(count):
            if predecessors[idx]:
                via = set.intersection(*(dominators[source] for source in predecessors[idx])) | {idx}
                if via != dominators[idx]:
                    dominators[idx], changed = via, True
    return dominators


def _reaching(source: int, header: int, predecessors: dict[int, set[int]]) -> set[int]:
    """Blocks from which `source` can be reached without passing `header`."""
    body: set[int] = set()
    pending = [source]
    while pending:
        idx = pending.pop()
        if idx != header and idx not in body:
            body.add(idx)
            pending.extend(predecessors[idx])
    return body
