/* libpcap's own loop over a capture: the packets that match are counted, and written when there is a third argument.
 *
 *     loop CAPTURE EXPRESSION [OUTPUT]
 */
#include <pcap/pcap.h>
#include <stdio.h>

struct state {
    pcap_dumper_t *dumper;
    unsigned long matching;
};

static void each(u_char *user, const struct pcap_pkthdr *header, const u_char *data)
{
    struct state *state = (struct state *)user;

    state->matching++;
    if (state->dumper)
        pcap_dump((u_char *)state->dumper, header, data);
}

static int fail(const char *what)
{
    fprintf(stderr, "loop: %s\n", what);
    return 1;
}

int main(int argc, char **argv)
{
    char error[PCAP_ERRBUF_SIZE];
    struct bpf_program program;
    struct state state = {NULL, 0};
    pcap_t *capture;

    if (argc != 3 && argc != 4)
        return fail("usage: loop CAPTURE EXPRESSION [OUTPUT]");
    if (!(capture = pcap_open_offline(argv[1], error)))
        return fail(error);
    if (pcap_compile(capture, &program, argv[2], 1, PCAP_NETMASK_UNKNOWN) || pcap_setfilter(capture, &program))
        return fail(pcap_geterr(capture));
    if (argc == 4 && !(state.dumper = pcap_dump_open(capture, argv[3])))
        return fail(pcap_geterr(capture));
    if (pcap_loop(capture, -1, each, (u_char *)&state))
        return fail(pcap_geterr(capture));
    if (state.dumper) {
        if (pcap_dump_flush(state.dumper))
            return fail("the output cannot be written");
        pcap_dump_close(state.dumper);
    }
    printf("%lu\n", state.matching);
    return 0;
}
