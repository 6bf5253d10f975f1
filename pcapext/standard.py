"""Standard: programs of filters without extension terms, which libpcap compiles.

In:  a request.
Out: the instructions of libpcap's own program; or, where more is asked for, of one with the same verdicts and less work.

libpcap says what is wrong with an expression, but not where: `placed` finds that out.
"""

from __future__ import annotations

from pcapext import pcap_bridge
from pcapext.bpf import MAX_INSTRUCTIONS, Instruction
from pcapext.errors import FilterError, ProgramError, Span
from pcapext.request import Request


def compile_standard(request: Request) -> tuple[Instruction, ...]:
    """The program of a filter."""
    expression = request.expression
    try:
        if request.optimize < 2:
            return request.by_libpcap(expression, bool(request.optimize))
        return _compile_apart(request) or _improve(request.by_libpcap(expression, None))
    except FilterError as error:
        raise placed(error, request) from None


def _improve(program: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """A program of libpcap's after our passes: with its lists searched by value, or else without, or else as it is."""
    from pcapext.assemble import assemble
    from pcapext.lift import lift
    from pcapext.optimize import finish, improve
    from pcapext.optimize.gather import gather
    from pcapext.prove import longest_way, never_worse

    try:
        graph = lift(program)
    except ProgramError:  # a loop, which only `protochain` makes
        return program
    gathered = gather(graph)
    for tried in [gathered, graph] if gathered != graph else [graph]:
        try:
            improved = assemble(finish(improve(tried)))
        except FilterError:  # too few registers
            continue
        if len(improved) > MAX_INSTRUCTIONS:
            continue
        if never_worse(improved, program) or (tried is not graph and 2 * longest_way(improved) <= longest_way(program)):
            return improved
    return program


def _compile_apart(request: Request) -> tuple[Instruction, ...] | None:
    """A filter that is too long for libpcap, compiled term by term; None for another, and for one that cannot be taken apart."""
    expression, linktype = request.expression, request.linktype
    if linktype in pcap_bridge.VARIABLE_LINKTYPES or not pcap_bridge.exceeds_optimizer(expression, linktype):
        return None  # where headers vary, libpcap looks for the end of the first one once, before all terms
    from pcapext.assemble import assemble
    from pcapext.combine import combine, terms_apart
    from pcapext.lift import lift
    from pcapext.optimize import optimize
    from pcapext.parser import parse

    tree = parse(expression)
    terms = terms_apart(tree, expression)
    if terms is None:
        return None
    programs = {span: request.by_libpcap(term, False) for span, term in terms.items()}
    if sum(map(len, programs.values())) * 7 / 6 <= pcap_bridge.OPTIMIZABLE:  # in one program, long jumps are a seventh of it
        return None
    try:
        graphs = {span: lift(program) for span, program in programs.items()}
    except ProgramError:  # `protochain`
        return None
    return assemble(optimize(combine(tree, graphs, request.snaplen)))


def placed(error: FilterError, request: Request) -> FilterError:
    """An error of libpcap's with the place that it is about: libpcap says what is wrong, but not where."""
    from bisect import bisect_left

    from pcapext.locate import standard_terms
    from pcapext.parser import parse

    expression = request.expression
    if error.span is not None:
        # A place in the text with markers is none for the user.
        return error if error.expression == expression else FilterError(error.message, expression, Span(0, len(expression)))
    if not expression.strip():
        return error
    tree = parse(expression)  # a syntax error is raised here, in our words
    terms = list(standard_terms(tree, expression))

    def refused(text: str) -> bool:
        """Whether libpcap has the same to say of a part of the filter."""
        try:
            request.by_libpcap(text, False)
        except FilterError as again:
            return again.message == error.message
        return False

    for span, term in terms:
        if refused(term):
            return FilterError(error.message, expression, span)
    # `vlan` behind `mpls`: what libpcap says of a term can depend on those before it.
    first = bisect_left(range(1, len(terms) + 1), True, key=lambda count: refused(" and ".join(term for _, term in terms[:count])))
    return FilterError(error.message, expression, terms[first][0] if first < len(terms) else tree.span)
