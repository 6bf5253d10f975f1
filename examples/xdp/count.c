/* An XDP program that counts the packets that a filter of pcapext's matches, and passes all of them on.
 *
 *     pcapext compile -t c 'inner tcp port 80' > filter.c
 *     clang -O2 -g -target bpf -c count.c -o count.o
 *     ip link set dev eth0 xdp obj count.o sec xdp
 */
#include "filter.c"

/* What a program needs of linux/bpf.h, so that nothing has to be installed. */
struct xdp_md {
    uint32_t data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};
enum { XDP_PASS = 2 };

/* libbpf makes a map of them, which bpftool shows. */
volatile uint64_t packets, matching;

__attribute__((section("xdp"), used)) int count(struct xdp_md *context)
{
    const uint8_t *data = (const uint8_t *)(uint64_t)context->data;
    const uint8_t *data_end = (const uint8_t *)(uint64_t)context->data_end;
    __sync_fetch_and_add(&packets, 1);
    /* An XDP program sees the whole packet. */
    if (filter(data, data_end, (uint32_t)(data_end - data)))
        __sync_fetch_and_add(&matching, 1);
    return XDP_PASS;
}
