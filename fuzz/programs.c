/* Fuzz target: programs, and packets that they run on.
 *
 * In:  a byte, how many instructions, its highest bit to have them shaped; the instructions as struct sock_filter; the length on the wire (4 bytes); the packet.
 * Checked: what is no program is refused, with a fault and its place. What is one is run in both ways, with loads and tests paired and one
 * by one, which must agree; no instruction runs more than once without a loop, and a program that is stopped ran as many as it may.
 */
#include "fuzz.h"

#define MOST_INSTRUCTIONS 64

static const uint8_t OPCODES[] = {
    0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x00, 0x60, 0x80, 0x01, 0x61, 0x81, 0xB1, 0x02, 0x03, 0x04, 0x14, 0x24, 0x34, 0x94, 0x54, 0x44,
    0xA4, 0x64, 0x74, 0x0C, 0x1C, 0x2C, 0x3C, 0x9C, 0x5C, 0x4C, 0xAC, 0x6C, 0x7C, 0x84, 0x07, 0x87, 0x05, 0x15, 0x25, 0x35, 0x45, 0x1D,
    0x2D, 0x3D, 0x4D, 0x06, 0x16,
};

/* Make of any bytes what often is an instruction: a known opcode, a short jump, a small k. */
static void shape(struct instruction *instruction)
{
    instruction->code = OPCODES[instruction->code % sizeof OPCODES];
    instruction->jt %= 8;
    instruction->jf %= 8;
    if (instruction->k >> 24 != 0)
        instruction->k = instruction->k >> 24 & 1 ? instruction->k % 33 : instruction->k & 0xFF;
}

/* Jump not far, and seldom backwards. */
static void bound_jump(struct instruction *instruction)
{
    if (instruction->code != 0x05)
        return;
    instruction->k = instruction->jt == 7 && instruction->jf == 7 ? 0 - instruction->k % 4 : instruction->k & 0xFF;
}

/* Whether to run a program with a loop, which mostly takes as long as ten thousand others: one in 128, by chance, but the same again and again. */
static int is_chosen(const uint8_t *bytes, size_t size)
{
    uint32_t sum = 2166136261u; /* FNV-1a */
    for (size_t at = 0; at < size; at++)
        sum = (sum ^ bytes[at]) * 16777619u;
    return sum >> 25 == 0;
}

static int has_loop(const struct instruction *instructions, uint32_t count)
{
    for (uint32_t at = 0; at < count; at++)
        if (instructions[at].code == 0x05 && at + 1 + instructions[at].k <= at)
            return 1;
    return 0;
}

static void run_both(const struct program *program, uint32_t count, int loops, const uint8_t *packet, uint32_t caplen, uint32_t wirelen)
{
    uint64_t counts[MOST_INSTRUCTIONS] = {0}, executed = 0;
    int64_t value = program_run(program, packet, caplen, wirelen);
    CHECK(value == program_run_counting(program, packet, caplen, wirelen, counts));
    CHECK(value >= 0 ? value <= UINT32_MAX : value == STOPPED && loops);
    CHECK(counts[0] >= 1);
    for (uint32_t at = 0; at < count; at++) {
        CHECK(loops || counts[at] <= 1);
        executed += counts[at];
    }
    CHECK(value != STOPPED || executed == 2000000);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct input input = {bytes, size};
    uint8_t first = take_byte(&input);
    uint32_t count = (first & 127u) % (MOST_INSTRUCTIONS + 1), wirelen, index;
    struct instruction *instructions = memory(count * sizeof *instructions);
    for (uint32_t at = 0; at < count; at++) {
        take(&input, &instructions[at], sizeof *instructions);
        if (first & 128)
            shape(&instructions[at]);
        bound_jump(&instructions[at]);
    }
    take(&input, &wirelen, sizeof wirelen);
    uint32_t caplen = (uint32_t)input.left;
    uint8_t *packet = copy_of(input.bytes, caplen);

    int fault = -1, loops = has_loop(instructions, count);
    struct program *program = program_new(instructions, count, NULL, &fault, &index);
    if (program == NULL) {
        CHECK(fault > FAULT_NONE && fault <= FAULT_NO_RETURN);
        CHECK(index < count || (count == 0 && index == 0));
    } else {
        CHECK(fault == FAULT_NONE);
        if (!loops || is_chosen(bytes, size))
            run_both(program, count, loops, packet, caplen, wirelen);
    }
    program_free(program);
    free(packet);
    free(instructions);
    return 0;
}
