/* Every guarded function once: ON_NONE(name, arguments), ON_MANAGER(...) and ON_CACHE(...) say on which object. The
 * arguments besides the handle are null or zero; the guard answers before it looks at them. tests/c_abi.rs compares
 * the list with the header. */
#ifndef CALLS_H
#define CALLS_H

#define CALLS                                                                                                     \
    ON_NONE(kavern_set_log_callback, (0, NULL, NULL))                                                             \
    ON_NONE(kavern_device_count, (NULL, NULL))                                                                    \
    ON_NONE(kavern_device_describe, (NULL, NULL))                                                                 \
    ON_NONE(kavern_manager_config_init, (NULL, 0))                                                                \
    ON_NONE(kavern_manager_create, (NULL, NULL))                                                                  \
    ON_NONE(kavern_manager_destroy, (NULL))                                                                       \
    ON_MANAGER(kavern_manager_stats, (manager, NULL))                                                             \
    ON_MANAGER(kavern_manager_report_json, (manager, NULL, 0, NULL))                                              \
    ON_MANAGER(kavern_manager_validate, (manager))                                                                \
    ON_MANAGER(kavern_warmup, (manager))                                                                          \
    ON_MANAGER(kavern_manager_stream_register, (manager, NULL))                                                   \
    ON_MANAGER(kavern_manager_stream_unregister, (manager, NULL))                                                 \
    ON_MANAGER(kavern_stream_create, (manager, NULL))                                                             \
    ON_NONE(kavern_stream_destroy, (NULL))                                                                        \
    ON_MANAGER(kavern_stream_synchronize, (manager, NULL))                                                        \
    ON_MANAGER(kavern_stream_wait, (manager, NULL, 0))                                                            \
    ON_MANAGER(kavern_stream_record, (manager, NULL, NULL))                                                       \
    ON_NONE(kavern_ticket_poll, (NULL, 0, NULL))                                                                  \
    ON_NONE(kavern_ticket_wait, (0, 0))                                                                           \
    ON_NONE(kavern_kv_cache_config_init, (NULL, 0))                                                               \
    ON_MANAGER(kavern_kv_cache_create, (manager, NULL, NULL))                                                     \
    ON_NONE(kavern_kv_cache_destroy, (NULL))                                                                      \
    ON_CACHE(kavern_kv_match, (cache, 0, NULL, NULL))                                                             \
    ON_CACHE(kavern_kv_step, (cache, 0, 0, NULL, NULL))                                                           \
    ON_CACHE(kavern_kv_tables, (cache, 0, NULL, NULL))                                                            \
    ON_CACHE(kavern_kv_poll, (cache, 0, NULL, NULL))                                                              \
    ON_CACHE(kavern_kv_step_done, (cache, 0, NULL))                                                               \
    ON_CACHE(kavern_kv_describe, (cache, 0, NULL))                                                                \
    ON_CACHE(kavern_kv_stats, (cache, NULL))                                                                      \
    ON_CACHE(kavern_kv_validate, (cache))                                                                         \
    ON_CACHE(kavern_kv_reset, (cache, 0, 0, NULL))                                                                \
    ON_CACHE(kavern_kv_evict, (cache, 0, 0, NULL))                                                                \
    ON_CACHE(kavern_kv_events_read, (cache, NULL, 0, NULL, NULL))                                                 \
    ON_CACHE(kavern_kv_events_snapshot, (cache, NULL, 0, NULL, NULL))                                             \
    ON_CACHE(kavern_kv_block_keys, (cache, NULL, NULL, 0, NULL))                                                  \
    ON_CACHE(kavern_kv_append, (cache, NULL, NULL))                                                               \
    ON_CACHE(kavern_kv_fill_pattern, (cache, NULL, 0, 0, NULL, NULL))                                             \
    ON_CACHE(kavern_kv_check_pattern, (cache, NULL, 0, 0, NULL, NULL))                                            \
    ON_CACHE(kavern_kv_pattern_result, (cache, NULL))                                                             \
    ON_MANAGER(kavern_sim_launch, (manager, NULL, NULL, 0, NULL, 0))                                              \
    ON_MANAGER(kavern_sim_report, (manager, NULL, 0, NULL))                                                       \
    ON_MANAGER(kavern_sim_seed, (manager, 1))

#endif
