/* Limits of a manager: the soft one, and a budget that two processes share, of which one is killed. */
#define _DEFAULT_SOURCE
#include "check.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static kavern_manager_config config_of(void) {
    kavern_manager_config config;
    OK(kavern_manager_config_init(&config, sizeof config));
    CHECK(config.device_soft_limit_bytes == 0 && config.machine_budget_name == NULL);
    CHECK(config.machine_budget_bytes == 0);
    config.device = test_device();
    return config;
}

static uint64_t asked;

static uint64_t count(void *userdata, uint64_t bytes) {
    (void)userdata;
    asked += bytes;
    return 0;
}

static void above_the_soft_limit_callbacks_are_asked(void) {
    kavern_manager *manager = NULL;
    kavern_manager_config config = config_of();
    config.device_limit_bytes = 64 * MIB;
    config.device_soft_limit_bytes = 65 * MIB;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config, &manager));
    CHECK(last_error_has("soft_limit"));
    config.device_soft_limit_bytes = 16 * MIB;
    OK(kavern_manager_create(&config, &manager));
    OK(kavern_manager_on_reclaim(manager, count, NULL));
    uint64_t first = 0, second = 0, third = 0;
    OK(kavern_alloc(manager, 8 * MIB, 0, NULL, 0, &first));
    CHECK(asked == 0);
    OK(kavern_alloc(manager, 40 * MIB, 0, NULL, 0, &second));
    CHECK(asked == 8 * MIB + 40 * MIB - 16 * MIB);
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_alloc(manager, 40 * MIB, 0, NULL, 0, &third));
    kavern_manager_statistics stats = {.struct_size = sizeof stats};
    OK(kavern_manager_stats(manager, &stats));
    CHECK(stats.device_soft_limit_bytes == 16 * MIB && stats.device_limit_bytes == 64 * MIB);
    OK(kavern_free(manager, first, NULL));
    OK(kavern_free(manager, second, NULL));
    OK(kavern_manager_destroy(&manager));
}

static void a_program_of_an_older_version_has_no_new_fields(void) {
    kavern_manager *manager = NULL;
    kavern_manager_config config = config_of();
    config.struct_size = 64;
    config.machine_budget_bytes = 5;
    config.device_soft_limit_bytes = 1;
    OK(kavern_manager_create(&config, &manager));
    kavern_manager_statistics stats = {.struct_size = 136};
    stats.allocator_bytes = 4711;
    OK(kavern_manager_stats(manager, &stats));
    CHECK(stats.allocator_bytes == 4711);
    OK(kavern_manager_destroy(&manager));
}

static kavern_manager *open_shared(const char *name, uint64_t bytes) {
    kavern_manager *manager = NULL;
    kavern_manager_config config = config_of();
    config.machine_budget_name = name;
    config.machine_budget_bytes = bytes;
    OK(kavern_manager_create(&config, &manager));
    return manager;
}

static void a_commit_takes_pages_that_were_made_ahead(void) {
    kavern_manager *manager = NULL;
    kavern_manager_config config = config_of();
    CHECK(config.ready_low_bytes == 0 && config.ready_high_bytes == 0);
    config.device_limit_bytes = 64 * MIB;
    config.ready_high_bytes = 48 * MIB;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config, &manager));
    config.ready_low_bytes = 49 * MIB;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config, &manager));
    config.ready_high_bytes = 65 * MIB;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config, &manager));
    config.ready_low_bytes = 24 * MIB;
    config.ready_high_bytes = 48 * MIB;
    OK(kavern_manager_create(&config, &manager));
    kavern_manager_statistics stats = {.struct_size = sizeof stats};
    do OK(kavern_manager_stats(manager, &stats));
    while (stats.device_held_bytes < 48 * MIB);
    kavern_elastic *elastic = NULL;
    kavern_elastic_config range;
    OK(kavern_elastic_config_init(&range, sizeof range));
    range.capacity_bytes = 16 * MIB;
    OK(kavern_elastic_create(manager, &range, &elastic));
    OK(kavern_elastic_commit(elastic, 0, 8 * MIB, NULL));
    OK(kavern_manager_stats(manager, &stats));
    CHECK(stats.device_held_bytes == 48 * MIB && stats.elastic_bytes == 8 * MIB);
    CHECK(stats.page_misses == 0 && stats.page_hits > 0 && stats.pages_made_ahead > stats.page_hits);
    CHECK(stats.pooled_page_bytes == 40 * MIB && stats.failed_unmaps == 0);
    OK(kavern_elastic_destroy(&elastic));
    /* What was made ahead is in nobody's way. */
    uint64_t address = 0;
    OK(kavern_alloc(manager, 60 * MIB, 0, NULL, 0, &address));
    OK(kavern_free(manager, address, NULL));
    OK(kavern_manager_destroy(&manager));
}

/* The other process: takes most of the budget, says so, and waits to be killed. */
static void hold(const char *name, int out) {
    kavern_manager *manager = open_shared(name, 64 * MIB);
    uint64_t address = 0;
    OK(kavern_alloc(manager, 48 * MIB, 0, NULL, 0, &address));
    CHECK(write(out, "x", 1) == 1);
    for (;;) pause();
}

static void two_processes_share_a_budget_and_the_dead_give_theirs_back(void) {
    char name[64], path[96], word = 0;
    int ends[2];
    snprintf(name, sizeof name, "test-c-%ld", (long)getpid());
    snprintf(path, sizeof path, "/kavern-%ld-%s", (long)geteuid(), name);
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) hold(name, ends[1]);
    CHECK(read(ends[0], &word, 1) == 1);
    kavern_manager_config config = config_of();
    kavern_manager *manager = NULL;
    config.machine_budget_bytes = 5;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config, &manager));
    config.machine_budget_name = "a/b";
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config, &manager));
    config.machine_budget_name = name;
    config.machine_budget_bytes = 32 * MIB;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config, &manager));
    manager = open_shared(name, 0);
    uint64_t small = 0, large = 0;
    OK(kavern_alloc(manager, 4 * MIB, 0, NULL, 0, &small));
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_alloc(manager, 40 * MIB, 0, NULL, 0, &large));
    CHECK(last_error_has(name));
    kavern_pool_config pool_config;
    kavern_pool *pool = NULL;
    OK(kavern_pool_config_init(&pool_config, sizeof pool_config));
    pool_config.rounding = KAVERN_POOL_FIXED;
    pool_config.block_bytes = 32 * MIB;
    OK(kavern_pool_create(manager, &pool_config, &pool));
    kavern_pool_block block;
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_pool_acquire(pool, 32 * MIB, NULL, &block));
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    OK(kavern_alloc(manager, 40 * MIB, 0, NULL, 0, &large));
    OK(kavern_free(manager, small, NULL));
    OK(kavern_free(manager, large, NULL));
    OK(kavern_pool_destroy(&pool));
    OK(kavern_manager_destroy(&manager));
    CHECK(shm_unlink(path) == 0);
}

/* Each has a limit of its own; what bounds both is the budget that they name. */
static void two_managers_of_one_process_share_a_budget(void) {
    char name[64], path[96];
    snprintf(name, sizeof name, "test-c-two-%ld", (long)getpid());
    snprintf(path, sizeof path, "/kavern-%ld-%s", (long)geteuid(), name);
    kavern_manager *managers[4];
    uint64_t first = 0, second = 0;
    for (int i = 0; i < 4; i++) {
        kavern_manager_config config = config_of();
        config.device_limit_bytes = 48 * MIB;
        config.machine_budget_name = i < 2 ? NULL : name;
        config.machine_budget_bytes = i < 2 ? 0 : 64 * MIB;
        OK(kavern_manager_create(&config, &managers[i]));
    }
    OK(kavern_alloc(managers[0], 40 * MIB, 0, NULL, 0, &first));
    OK(kavern_alloc(managers[1], 40 * MIB, 0, NULL, 0, &second));
    OK(kavern_free(managers[0], first, NULL));
    OK(kavern_free(managers[1], second, NULL));
    OK(kavern_alloc(managers[2], 40 * MIB, 0, NULL, 0, &first));
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_alloc(managers[3], 40 * MIB, 0, NULL, 0, &second));
    CHECK(last_error_has(name));
    OK(kavern_free(managers[2], first, NULL));
    OK(kavern_stream_synchronize(managers[2], NULL));
    OK(kavern_manager_trim(managers[2], NULL));
    OK(kavern_alloc(managers[3], 40 * MIB, 0, NULL, 0, &second));
    OK(kavern_free(managers[3], second, NULL));
    for (int i = 0; i < 4; i++) OK(kavern_manager_destroy(&managers[i]));
    CHECK(shm_unlink(path) == 0);
}

int main(void) {
    /* First, because a child of a process that has used the library may not use it. */
    two_processes_share_a_budget_and_the_dead_give_theirs_back();
    above_the_soft_limit_callbacks_are_asked();
    a_commit_takes_pages_that_were_made_ahead();
    a_program_of_an_older_version_has_no_new_fields();
    two_managers_of_one_process_share_a_budget();
    return 0;
}
