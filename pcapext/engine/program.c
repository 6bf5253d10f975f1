/* The interpreter of classic BPF.
 *
 * What an instruction does is what libpcap's interpreter does, in the places where interpreters differ too: the head of pcapext/machine.py
 * tells them, and the tests hold the two against each other. A program is checked once, when it is made; to run it, nothing but
 * the loads has to look at what it does.
 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#define SLOTS 16
#define MOST_INSTRUCTIONS (1u << 24)

/* Instructions that may run for one packet, in a program that jumps backwards (machine.py, LIMIT). */
#define LIMIT 2000000u

/* The code of what no instruction says by its code alone. */
#define NO_CODE 0x10000u

/* What the interpreter does, one name for each opcode. The rows: name, code, and how k is checked. */
#define OPERATIONS(ROW)                 \
    ROW(LD_W_ABS, 0x20, CHECK_NOTHING)  \
    ROW(LD_H_ABS, 0x28, CHECK_NOTHING)  \
    ROW(LD_B_ABS, 0x30, CHECK_NOTHING)  \
    ROW(LD_W_IND, 0x40, CHECK_NOTHING)  \
    ROW(LD_H_IND, 0x48, CHECK_NOTHING)  \
    ROW(LD_B_IND, 0x50, CHECK_NOTHING)  \
    ROW(LD_KEY, NO_CODE, CHECK_NOTHING) \
    ROW(LD_KEYS, NO_CODE, CHECK_NOTHING) \
    ROW(LD_IMM, 0x00, CHECK_NOTHING)    \
    ROW(LD_MEM, 0x60, CHECK_SLOT)       \
    ROW(LD_LEN, 0x80, CHECK_NOTHING)    \
    ROW(LDX_IMM, 0x01, CHECK_NOTHING)   \
    ROW(LDX_MEM, 0x61, CHECK_SLOT)      \
    ROW(LDX_LEN, 0x81, CHECK_NOTHING)   \
    ROW(LDX_MSH, 0xB1, CHECK_NOTHING)   \
    ROW(ST, 0x02, CHECK_SLOT)           \
    ROW(STX, 0x03, CHECK_SLOT)          \
    ROW(ADD_K, 0x04, CHECK_NOTHING)     \
    ROW(SUB_K, 0x14, CHECK_NOTHING)     \
    ROW(MUL_K, 0x24, CHECK_NOTHING)     \
    ROW(DIV_K, 0x34, CHECK_DIVISION)    \
    ROW(MOD_K, 0x94, CHECK_DIVISION)    \
    ROW(AND_K, 0x54, CHECK_NOTHING)     \
    ROW(OR_K, 0x44, CHECK_NOTHING)      \
    ROW(XOR_K, 0xA4, CHECK_NOTHING)     \
    ROW(LSH_K, 0x64, CHECK_SHIFT)       \
    ROW(RSH_K, 0x74, CHECK_SHIFT)       \
    ROW(ADD_X, 0x0C, CHECK_NOTHING)     \
    ROW(SUB_X, 0x1C, CHECK_NOTHING)     \
    ROW(MUL_X, 0x2C, CHECK_NOTHING)     \
    ROW(DIV_X, 0x3C, CHECK_NOTHING)     \
    ROW(MOD_X, 0x9C, CHECK_NOTHING)     \
    ROW(AND_X, 0x5C, CHECK_NOTHING)     \
    ROW(OR_X, 0x4C, CHECK_NOTHING)      \
    ROW(XOR_X, 0xAC, CHECK_NOTHING)     \
    ROW(LSH_X, 0x6C, CHECK_NOTHING)     \
    ROW(RSH_X, 0x7C, CHECK_NOTHING)     \
    ROW(NEG, 0x84, CHECK_NOTHING)       \
    ROW(TAX, 0x07, CHECK_NOTHING)       \
    ROW(TXA, 0x87, CHECK_NOTHING)       \
    ROW(JA, 0x05, CHECK_DISTANCE)       \
    ROW(JEQ_K, 0x15, CHECK_BRANCHES)    \
    ROW(JGT_K, 0x25, CHECK_BRANCHES)    \
    ROW(JGE_K, 0x35, CHECK_BRANCHES)    \
    ROW(JSET_K, 0x45, CHECK_BRANCHES)   \
    ROW(JEQ_X, 0x1D, CHECK_BRANCHES)    \
    ROW(JGT_X, 0x2D, CHECK_BRANCHES)    \
    ROW(JGE_X, 0x3D, CHECK_BRANCHES)    \
    ROW(JSET_X, 0x4D, CHECK_BRANCHES)   \
    ROW(RET_K, 0x06, CHECK_NOTHING)     \
    ROW(RET_A, 0x16, CHECK_NOTHING)

enum check { CHECK_NOTHING, CHECK_SLOT, CHECK_DIVISION, CHECK_SHIFT, CHECK_DISTANCE, CHECK_BRANCHES };

/* Loads into A: how many bytes of the packet, from where, and what they make. A flow key takes none. */
#define LOADS(ROW)                                        \
    ROW(LD_W_ABS, 4, step->k, word(packet + at))          \
    ROW(LD_H_ABS, 2, step->k, half(packet + at))          \
    ROW(LD_B_ABS, 1, step->k, packet[at])                 \
    ROW(LD_W_IND, 4, (uint64_t)X + step->k, word(packet + at)) \
    ROW(LD_H_IND, 2, (uint64_t)X + step->k, half(packet + at)) \
    ROW(LD_B_IND, 1, (uint64_t)X + step->k, packet[at])        \
    ROW(LD_KEY, 0, 0, (WALK_ONCE, key_at(&keys, step->k)))

/* A load and the test of A that follows it are one operation: half of a usual program are such pairs, and finding the next thing to do is most
 * of what an instruction costs. The step of the test stays where it is, for those who jump to it. */
#define PAIRED(load) load##_JEQ_K, load##_JGT_K, load##_JGE_K, load##_JSET_K

#define NAME(name, code, check) name,
#define PAIRED_NAMES(load, size, place, value) PAIRED(load),
enum operation { OPERATIONS(NAME) LOADS(PAIRED_NAMES) OPERATION_COUNT };
#undef NAME
#undef PAIRED_NAMES

struct row {
    uint32_t code;
    enum check check;
};
#define ENTRY(name, code, check) {code, check},
static const struct row ROWS[] = {OPERATIONS(ENTRY)};
#undef ENTRY
#define ROW_COUNT (sizeof ROWS / sizeof *ROWS)

/* An instruction to run: jumps have the indexes of where they lead to. */
struct step {
    uint16_t operation;
    uint16_t single; /* the operation without what was paired with it */
    uint32_t k; /* of LD_KEY: where the key stands in struct flow_keys */
    uint32_t jt, jf;
};

struct program {
    const struct walk_table *walk;
    uint32_t count;
    int loops; /* it jumps backwards */
    struct step steps[];
};

static enum fault check(enum check check, const struct instruction *instruction, uint32_t index, uint32_t count)
{
    switch (check) {
    case CHECK_SLOT:
        return instruction->k < SLOTS ? FAULT_NONE : FAULT_SLOT;
    case CHECK_DIVISION:
        return instruction->k != 0 ? FAULT_NONE : FAULT_DIVISION;
    case CHECK_SHIFT:
        return instruction->k < 32 ? FAULT_NONE : FAULT_SHIFT;
    case CHECK_DISTANCE: /* which may be negative: it wraps around */
        return index + 1 + instruction->k < count ? FAULT_NONE : FAULT_JUMP;
    case CHECK_BRANCHES:
        return index + 1 + instruction->jt < count && index + 1 + instruction->jf < count ? FAULT_NONE : FAULT_JUMP;
    case CHECK_NOTHING:
        break;
    }
    return FAULT_NONE;
}

/* Whether the walk may answer an instruction: an absolute load, of any size. */
static int may_walk(const struct instruction *instruction, const struct walk_table *walk)
{
    uint16_t code = instruction->code;
    return walk != NULL && (code == ROWS[LD_W_ABS].code || code == ROWS[LD_H_ABS].code || code == ROWS[LD_B_ABS].code);
}

/* Which flow key a load is of, or KEYS. */
static uint32_t key_of(const struct instruction *instruction, const struct walk_table *walk)
{
    uint32_t key = 0;
    while (key < KEYS && walk->k[key] != instruction->k)
        key++;
    return key;
}

/* The step of an instruction, or the fault that keeps it from being one. */
static enum fault make_step(const struct instruction *instruction, uint32_t index, uint32_t count, const struct walk_table *walk,
                            struct step *step)
{
    if (may_walk(instruction, walk)) {
        uint32_t key = key_of(instruction, walk);
        if (key < KEYS || instruction->k == walk->all_k) {
            uint16_t operation = key < KEYS ? LD_KEY : LD_KEYS;
            *step = (struct step){operation, operation, key * sizeof(uint32_t), 0, 0};
            return FAULT_NONE;
        }
    }
    for (uint32_t row = 0; row < ROW_COUNT; row++) {
        if (ROWS[row].code != instruction->code)
            continue;
        *step = (struct step){(uint16_t)row, (uint16_t)row, instruction->k, index + 1 + instruction->jt, index + 1 + instruction->jf};
        if (row == JA)
            step->jt = index + 1 + instruction->k;
        return check(ROWS[row].check, instruction, index, count);
    }
    return FAULT_OPCODE;
}

struct program *program_new(const struct instruction *instructions, uint32_t count, const struct walk_table *walk, int *fault,
                            uint32_t *index)
{
    *index = 0;
    *fault = FAULT_EMPTY;
    if (count == 0 || count > MOST_INSTRUCTIONS)
        return NULL;
    struct program *program = malloc(sizeof *program + count * sizeof *program->steps);
    *fault = FAULT_MEMORY;
    if (program == NULL)
        return NULL;
    *program = (struct program){.walk = walk, .count = count};
    for (uint32_t at = 0; at < count; at++) {
        struct step *step = &program->steps[at];
        *fault = make_step(&instructions[at], at, count, walk, step);
        if (*fault == FAULT_NONE && at == count - 1 && step->operation != RET_K && step->operation != RET_A)
            *fault = FAULT_NO_RETURN;
        if (*fault != FAULT_NONE) {
            *index = at;
            free(program);
            return NULL;
        }
        if (step->operation == JA && step->jt <= at)
            program->loops = 1;
        if (at > 0 && step->operation >= JEQ_K && step->operation <= JSET_K && step[-1].operation <= LD_KEY)
            step[-1].operation = (uint16_t)(LD_W_ABS_JEQ_K + 4 * step[-1].operation + step->operation - JEQ_K);
    }
    return program;
}

void program_free(struct program *program)
{
    free(program);
}

/* Bytes of the packet in network byte order. */
static inline uint32_t word(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline uint32_t half(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static inline uint32_t key_at(const struct flow_keys *keys, uint32_t place)
{
    uint32_t key;
    memcpy(&key, (const char *)keys + place, sizeof key);
    return key;
}

/* Run a program. `limit` and `counts` are constants of each call below, so that the compiler makes a copy without what is not asked for. */
static inline __attribute__((always_inline)) int64_t run(const struct program *program, const uint8_t *packet, uint32_t caplen,
                                                         uint32_t wirelen, uint64_t limit, uint64_t *counts)
{
    const struct step *const steps = program->steps;
    const struct step *step = steps;
    uint32_t A = 0, X = 0, M[SLOTS] = {0};
    uint64_t executed = 0;
    struct flow_keys keys;
    int walked = 0;

    /* The first load of a flow key walks, the others find the keys. */
#define WALK_ONCE (walked ? (void)0 : (walk(program->walk, packet, caplen, &keys), (void)(walked = 1)))

    /* `size` bytes at `place`, which is not cut to 32 bits. They must lie wholly inside. */
#define LOAD(size, place, assignment)     \
    {                                     \
        uint64_t at = (place);            \
        if (at + (size) > caplen)         \
            return 0;                     \
        assignment;                       \
    }
#define JUMP(test)                                     \
    {                                                  \
        step = steps + ((test) ? step->jt : step->jf); \
        continue;                                      \
    }
#define LOAD_CASES(load, size, place, value)                                        \
    case load: LOAD(size, place, A = value) break;                                  \
    case load##_JEQ_K: LOAD(size, place, A = value) step++; JUMP(A == step->k)      \
    case load##_JGT_K: LOAD(size, place, A = value) step++; JUMP(A > step->k)       \
    case load##_JGE_K: LOAD(size, place, A = value) step++; JUMP(A >= step->k)      \
    case load##_JSET_K: LOAD(size, place, A = value) step++; JUMP(A & step->k)

    for (;;) {
        if (limit && executed++ == limit)
            return STOPPED;
        if (counts)
            counts[step - steps]++;
        switch ((enum operation)(limit ? step->single : step->operation)) {
        LOADS(LOAD_CASES)
        case LDX_MSH: LOAD(1, step->k, X = (packet[at] & 0xFu) << 2) break;
        case LD_KEYS:
            WALK_ONCE;
            A = A < KEYS ? A : KEYS;
            memcpy(M, &keys, A * sizeof *M);
            break;
        case LD_IMM: A = step->k; break;
        case LD_MEM: A = M[step->k]; break;
        case LD_LEN: A = wirelen; break;
        case LDX_IMM: X = step->k; break;
        case LDX_MEM: X = M[step->k]; break;
        case LDX_LEN: X = wirelen; break;
        case ST: M[step->k] = A; break;
        case STX: M[step->k] = X; break;
        case ADD_K: A += step->k; break;
        case SUB_K: A -= step->k; break;
        case MUL_K: A *= step->k; break;
        case DIV_K: A /= step->k; break;
        case MOD_K: A %= step->k; break;
        case AND_K: A &= step->k; break;
        case OR_K: A |= step->k; break;
        case XOR_K: A ^= step->k; break;
        case LSH_K: A <<= step->k; break;
        case RSH_K: A >>= step->k; break;
        case ADD_X: A += X; break;
        case SUB_X: A -= X; break;
        case MUL_X: A *= X; break;
        case DIV_X:
            if (X == 0)
                return 0;
            A /= X;
            break;
        case MOD_X:
            if (X == 0)
                return 0;
            A %= X;
            break;
        case AND_X: A &= X; break;
        case OR_X: A |= X; break;
        case XOR_X: A ^= X; break;
        case LSH_X: A = X < 32 ? A << X : 0; break;
        case RSH_X: A = X < 32 ? A >> X : 0; break;
        case NEG: A = 0 - A; break;
        case TAX: X = A; break;
        case TXA: A = X; break;
        case JA: JUMP(1)
        case JEQ_K: JUMP(A == step->k)
        case JGT_K: JUMP(A > step->k)
        case JGE_K: JUMP(A >= step->k)
        case JSET_K: JUMP(A & step->k)
        case JEQ_X: JUMP(A == X)
        case JGT_X: JUMP(A > X)
        case JGE_X: JUMP(A >= X)
        case JSET_X: JUMP(A & X)
        case RET_K: return step->k;
        case RET_A: return A;
        case OPERATION_COUNT: break;
        }
        step++;
    }
#undef WALK_ONCE
#undef LOAD
#undef JUMP
#undef LOAD_CASES
}

/* As in machine.py: a program without loops is never stopped, however long it is. */
static uint64_t limit_of(const struct program *program)
{
    return program->count > LIMIT ? program->count : LIMIT;
}

static __attribute__((noinline)) int64_t run_loops(const struct program *program, const uint8_t *packet, uint32_t caplen, uint32_t wirelen)
{
    return run(program, packet, caplen, wirelen, limit_of(program), NULL);
}

int64_t program_run(const struct program *program, const uint8_t *packet, uint32_t caplen, uint32_t wirelen)
{
    if (program->loops)
        return run_loops(program, packet, caplen, wirelen);
    return run(program, packet, caplen, wirelen, 0, NULL);
}

int64_t program_run_whole(const struct program *program, const uint8_t *packet, uint32_t length)
{
    return program_run(program, packet, length, length);
}

int64_t program_run_counting(const struct program *program, const uint8_t *packet, uint32_t caplen, uint32_t wirelen, uint64_t *counts)
{
    return run(program, packet, caplen, wirelen, limit_of(program), counts);
}

int64_t match_records(struct program *const *programs, const uint8_t *buffer, const struct record *records, uint32_t count,
                      int blocks, uint32_t *selected, uint32_t *length, uint64_t *const *counts)
{
    int64_t packets = 0;
    uint32_t end = 0;
    for (uint32_t index = 0; index < count; index++) {
        const struct record *record = &records[index];
        if (record->interface == NOT_A_PACKET) {
            if (blocks)
                selected[end++] = index;
            continue;
        }
        const struct program *program = programs[record->interface];
        const uint8_t *packet = buffer + record->data;
        int64_t value;
        if (program == NULL)
            value = NO_PROGRAM;
        else if (counts != NULL)
            value = program_run_counting(program, packet, record->caplen, record->wirelen, counts[record->interface]);
        else if (program->loops)
            value = run_loops(program, packet, record->caplen, record->wirelen);
        else
            value = run(program, packet, record->caplen, record->wirelen, 0, NULL);
        if (value < 0) {
            *length = index;
            return value;
        }
        if (value != 0) {
            selected[end++] = index;
            packets++;
        }
    }
    *length = end;
    return packets;
}
