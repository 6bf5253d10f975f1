"""Pieces of C: what all that is written in C begins with, and numbers.

In:  numbers, and the text of functions.
Out: C text. `helpers_for` gives the helpers that a text calls, so that no compiler finds one that nobody uses.

Bytes of a packet are read through `has` alone. Where eBPF is made, it has the form that the verifier can follow (kernel/bpf/verifier.c,
find_good_pkt_pointers): the offset is bounded by a mask, the pointer is compared with the end of the packet, and the bytes are read
through that very pointer. The empty `asm` keeps clang from knowing the offset better than the verifier, and from making the pointer once
more. `forget` is for the verifier too: where ways meet, it goes on once for all that look alike, and numbers that it knows do not.
"""

from __future__ import annotations

import re

#: Where eBPF is made, no byte behind this one is looked at: the verifier wants offset and size to stay below 65536 (MAX_PACKET_OFF).
FARTHEST_IN_EBPF = 0x7FFF

INDENT = "    "

HEAD = """\
#ifdef __bpf__ /* clang -O2 -target bpf */
typedef __UINT8_TYPE__ uint8_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
#define INLINE static inline __attribute__((always_inline))
#define FILTER INLINE
#else
#include <stdint.h>
#define INLINE static inline
#define FILTER
#endif

/* The bytes of a packet that were captured. */
struct packet {
    const uint8_t *data, *end;
#ifdef __bpf__
    uint64_t any; /* some number that the verifier does not know */
#endif
};
"""

#: Helpers by name. Each may call those that stand before it.
_HELPERS = {
    "has": f"""\
/* Whether the packet holds `size` bytes from `offset` on; `at` is the first of them. */
INLINE int has(struct packet packet, uint64_t offset, uint64_t size, const uint8_t **at)
{{
#ifdef __bpf__
    /* The verifier wants a bound; what XDP and tc show of a packet at once is shorter. */
    if (offset > {FARTHEST_IN_EBPF:#x})
        return 0;
    __asm__ __volatile__("" : "+r"(offset));
    *at = packet.data + (offset & {FARTHEST_IN_EBPF:#x});
    __asm__ __volatile__("" : "+r"(*at));
    return *at + size <= packet.end;
#else
    uint64_t length = (uint64_t)(packet.end - packet.data);
    if (offset > length || size > length - offset)
        return 0;
    *at = packet.data + offset;
    return 1;
#endif
}}
""",
    "within": """\
INLINE int within(struct packet packet, uint64_t offset)
{
    const uint8_t *at;
    return has(packet, offset, 0, &at);
}
""",
    "forget": """\
/* A number of which the verifier is to know nothing: so it looks once at what follows, and not once for each way there. */
INLINE uint64_t forget(struct packet packet, uint64_t number)
{
#ifdef __bpf__
    __asm__ __volatile__("%0 += %1\\n%0 -= %1" : "+r"(number) : "r"(packet.any));
#endif
    (void)packet;
    return number;
}
""",
    "opaque": """\
/* A number that clang is not to take apart: it would turn `data_end - data - offset` into a sum that the verifier does not allow. */
INLINE uint32_t opaque(uint32_t number)
{
#ifdef __bpf__
    uint64_t held = number;
    __asm__ __volatile__("" : "+r"(held));
    return (uint32_t)held;
#else
    return number;
#endif
}
""",
    "half_at": """\
INLINE uint32_t half_at(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}
""",
    "word_at": """\
INLINE uint32_t word_at(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}
""",
    "load_byte": """\
/* Load a byte, 2 bytes or 4, the first one highest. 0 where they are not all in the packet. */
INLINE int load_byte(struct packet packet, uint64_t offset, uint32_t *value)
{
    const uint8_t *at;
    if (!has(packet, offset, 1, &at))
        return 0;
    *value = at[0];
    return 1;
}
""",
    "load_half": """\
INLINE int load_half(struct packet packet, uint64_t offset, uint32_t *value)
{
    const uint8_t *at;
    if (!has(packet, offset, 2, &at))
        return 0;
    *value = half_at(at);
    return 1;
}
""",
    "load_word": """\
INLINE int load_word(struct packet packet, uint64_t offset, uint32_t *value)
{
    const uint8_t *at;
    if (!has(packet, offset, 4, &at))
        return 0;
    *value = word_at(at);
    return 1;
}
""",
}


def calls(text: str, name: str) -> bool:
    """Whether a function is called in a text."""
    return re.search(rf"\b{name}\(", text) is not None


def helpers_for(text: str) -> str:
    """The helpers that a text calls, and those that they call."""
    found = "\n"
    for name, helper in reversed(_HELPERS.items()):
        if calls(text + found, name):
            found = f"\n{helper}{found}"
    return found


def identifier(name: str) -> str:
    """A name as C takes it, behind a prefix that begins with a letter.

    >>> identifier("vxlan-gpe")
    'vxlan_gpe'
    """
    return re.sub(r"\W", "_", name)


def indented(lines: list[str], depth: int = 1) -> list[str]:
    return [f"{INDENT * depth}{line}" if line else line for line in lines]
