/* How many packets a filter that was written as C matches, in the records that the engine describes. */
#include "engine.h"

uint32_t filter(const uint8_t *data, const uint8_t *data_end, uint32_t wirelen);

uint32_t count(const uint8_t *buffer, const struct record *records, uint32_t number)
{
    uint32_t matching = 0;
    for (uint32_t index = 0; index < number; index++) {
        const uint8_t *packet = buffer + records[index].data;
        matching += filter(packet, packet + records[index].caplen, records[index].wirelen) != 0;
    }
    return matching;
}
