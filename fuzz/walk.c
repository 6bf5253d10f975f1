/* The walk over any bytes.
 *
 * In:  the number of a table; then a packet, all that is left.
 * What has to hold: nothing outside of the packet is read; the keys lie inside of it, in their order; a second walk finds the same.
 *
 * The tables are those of fuzz/tables.py, in the file build/fuzz/tables.
 */
#include "fuzz.h"

#define MOST_TABLES 64
#define WALKED 0xFFFFu

static struct walk_table *tables;
static size_t table_count;

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count, (void)arguments;
    FILE *file = fopen("build/fuzz/tables", "rb");
    CHECK(file != NULL);
    tables = memory(MOST_TABLES * sizeof *tables);
    table_count = fread(tables, sizeof *tables, MOST_TABLES, file);
    CHECK(table_count > 0 && fgetc(file) == EOF);
    fclose(file);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct input input = {bytes, size};
    const struct walk_table *table = &tables[take_byte(&input) % table_count];
    uint32_t caplen = (uint32_t)input.left, seen = caplen < WALKED ? caplen : WALKED;
    uint8_t *packet = copy_of(input.bytes, caplen);
    struct flow_keys keys, again;
    walk(table, packet, caplen, &keys);
    /* A TCP header is as long as it says, at most 40 bytes more than what must be there. */
    CHECK(keys.nhoff <= seen && keys.thoff <= seen && keys.poff <= seen + 40);
    CHECK(keys.depth < table->max_levels && keys.nproto <= 0xFFFF && keys.tproto <= 0xFF);
    CHECK(keys.lhoff == UINT32_MAX || keys.lhoff == 0 || keys.lhoff + 14 <= seen);
    CHECK(keys.thoff == 0 || keys.thoff >= keys.nhoff);
    CHECK(keys.poff == 0 || keys.poff >= keys.thoff);
    walk(table, packet, caplen, &again);
    CHECK(memcmp(&keys, &again, sizeof keys) == 0);
    free(packet);
    return 0;
}
