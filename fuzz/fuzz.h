/* What the targets share: a reader of the bytes that the fuzzer gives, memory of exact size, and checks.
 *
 * Every buffer that the engine sees is as long as it is told and no longer, so that the sanitizer notices one byte too many.
 */
#ifndef PCAPEXT_FUZZ_H
#define PCAPEXT_FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                 \
        }                                                                            \
    } while (0)

struct input {
    const uint8_t *bytes;
    size_t left;
};

/* The next `size` bytes into `value`; 0 where there are no more. */
static inline void take(struct input *input, void *value, size_t size)
{
    size_t some = size < input->left ? size : input->left;
    memset(value, 0, size);
    if (some > 0)
        memcpy(value, input->bytes, some);
    input->bytes += some;
    input->left -= some;
}

static inline uint8_t take_byte(struct input *input)
{
    uint8_t byte;
    take(input, &byte, 1);
    return byte;
}

/* Memory that holds `size` bytes, which may be 0. */
static inline void *memory(size_t size)
{
    void *made = malloc(size);
    CHECK(made != NULL || size == 0);
    return made;
}

static inline void *copy_of(const void *bytes, size_t size)
{
    void *made = memory(size);
    if (size > 0)
        memcpy(made, bytes, size);
    return made;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#endif
