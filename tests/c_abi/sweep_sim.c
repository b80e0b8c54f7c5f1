/* Bad calls of the simulated device. */
#include "sweep.h"

#define SIM_MANAGER(argument) \
    ((kavern_manager *)(is_bad(argument) ? bad_handle(live_sim, stale_manager, sim_stream) : live_sim))

/* Addresses that no simulated device has: nothing, the host's, and past every end. */
static kavern_sim_range bad_range(void) {
    kavern_sim_range range = {UINT64_C(1) << 52, 64};
    switch (below(4)) {
        case 0: range.address = 0; break;
        case 1: range.address = (uint64_t)(uintptr_t)out_memory; break;
        case 2: range.bytes = UINT64_MAX - below(1 << 20); break;
        default: range.address = UINT64_MAX - below(1 << 20); break;
    }
    return range;
}

static void sim_launch(void) {
    static kavern_sim_range lists[2][4];
    const kavern_sim_range *given[2];
    size_t counts[2];
    choose_flaw(8);
    for (int list = 0; list < 2; ++list) {
        for (int i = 0; i < 4; ++i) lists[list][i] = (kavern_sim_range){UINT64_C(1) << 52, 64};
        if (is_bad(list)) lists[list][below(4)] = bad_range();
        given[list] = is_bad(2 + list) ? bad_pointer() : lists[list];
        counts[list] = is_bad(4 + list) ? bad_count(sizeof lists[0][0]) : 4;
    }
    kavern_manager *manager = SIM_MANAGER(6);
    void *stream = is_bad(7) ? bad_stream() : one_in(2) ? (void *)sim_stream : NULL;
    /* A real device is wrong whatever the rest. */
    if (one_in(4)) manager = live_manager;
    refused(kavern_sim_launch(manager, stream, given[0], counts[0], given[1], counts[1]));
}

static void sim_report(void) {
    choose_flaw(2);
    kavern_manager *manager = SIM_MANAGER(0);
    char *buffer = (char *)&out_memory[1024];
    if (!is_bad(1)) {
        refused(kavern_sim_report(one_in(2) || manager == live_sim ? live_manager : manager, buffer, 8192, NULL));
        return;
    }
    switch (below(4)) {
        case 0: refused(kavern_sim_report(manager, NULL, below(5000) + 1, NULL)); break;
        case 1: refused(kavern_sim_report(manager, buffer, below(100), NULL)); break;
        case 2: refused(kavern_sim_report(manager, NULL, 0, NULL)); break;
        default: refused(kavern_sim_report(manager, buffer, 8192, (size_t *)(void *)&out_memory[65])); break;
    }
}

static void sim_seed(void) {
    choose_flaw(1);
    kavern_manager *manager = SIM_MANAGER(0);
    refused(kavern_sim_seed(manager == live_sim || one_in(2) ? live_manager : manager, below(1000)));
}

const sweep_entry sweep_sim[] = {
    {"kavern_sim_launch", sim_launch},
    {"kavern_sim_report", sim_report},
    {"kavern_sim_seed", sim_seed},
    {NULL, NULL},
};
