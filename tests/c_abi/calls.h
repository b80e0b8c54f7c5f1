/* Every guarded function once: ON_NONE(name, arguments), ON_MANAGER(...), ON_CACHE(...), ON_POOL(...), ON_ELASTIC(...)
 * and ON_SHARED(...) say on which object. The arguments besides the handle are null or zero; the guard answers before
 * it looks at them. tests/c_abi.rs compares the list with the header. */
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
    ON_MANAGER(kavern_ticket_wait_on_stream, (0, manager, NULL))                                                  \
    ON_MANAGER(kavern_pinned_alloc, (manager, 0, NULL, NULL))                                                     \
    ON_MANAGER(kavern_pinned_free, (manager, NULL, NULL))                                                         \
    ON_MANAGER(kavern_pinned_register, (manager, NULL, 0, 0))                                                     \
    ON_MANAGER(kavern_pinned_unregister, (manager, NULL))                                                         \
    ON_MANAGER(kavern_pinned_reserve, (manager, 0))                                                               \
    ON_MANAGER(kavern_pinned_trim, (manager, NULL))                                                               \
    ON_MANAGER(kavern_pinned_stats, (manager, NULL))                                                              \
    ON_NONE(kavern_pool_config_init, (NULL, 0))\
    ON_MANAGER(kavern_pool_create, (manager, NULL, NULL))\
    ON_NONE(kavern_pool_destroy, (NULL))\
    ON_POOL(kavern_pool_acquire, (pool, 0, NULL, NULL))\
    ON_POOL(kavern_pool_release, (pool, 0, NULL))\
    ON_POOL(kavern_pool_acquire_batch, (pool, 0, NULL, NULL, NULL, NULL))\
    ON_POOL(kavern_pool_release_batch, (pool, 0, NULL, NULL, NULL))\
    ON_POOL(kavern_pool_stats, (pool, NULL, 0, NULL))\
    ON_POOL(kavern_pool_trim, (pool, 0, NULL))\
    ON_POOL(kavern_pool_validate, (pool))\
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
    ON_CACHE(kavern_kv_prefix_pin, (cache, NULL, 0))                                                              \
    ON_CACHE(kavern_kv_prefix_unpin, (cache, NULL))                                                               \
    ON_CACHE(kavern_kv_prefix_list, (cache, 0, NULL, NULL))                                                       \
    ON_CACHE(kavern_kv_resize, (cache, 0, 0, NULL))                                                               \
    ON_CACHE(kavern_kv_advise, (cache, 0, 0, 0, NULL))                                                            \
    ON_CACHE(kavern_kv_class_stats, (cache, 0, NULL))                                                             \
    ON_CACHE(kavern_kv_events_read, (cache, NULL, 0, NULL, NULL))                                                 \
    ON_CACHE(kavern_kv_events_snapshot, (cache, NULL, 0, NULL, NULL))                                             \
    ON_CACHE(kavern_kv_block_keys, (cache, NULL, NULL, 0, NULL))                                                  \
    ON_CACHE(kavern_kv_probe, (cache, 0, NULL, NULL))                                                             \
    ON_CACHE(kavern_kv_block_hashes, (cache, NULL, 0, NULL, 0, NULL))                                             \
    ON_CACHE(kavern_kv_match_chunks, (cache, NULL, NULL, NULL, 0, NULL))                                          \
    ON_CACHE(kavern_kv_lookup_device, (cache, NULL, NULL))                                                        \
    ON_CACHE(kavern_kv_append, (cache, NULL, NULL))                                                               \
    ON_CACHE(kavern_kv_fill_pattern, (cache, NULL, 0, 0, NULL, NULL))                                             \
    ON_CACHE(kavern_kv_check_pattern, (cache, NULL, 0, 0, NULL, NULL))                                            \
    ON_CACHE(kavern_kv_pattern_result, (cache, NULL))                                                             \
    ON_CACHE(kavern_kv_namespace_stats, (cache, 0, NULL))                                                         \
    ON_CACHE(kavern_kv_namespace_list, (cache, NULL, 0, NULL, NULL))                                              \
    ON_CACHE(kavern_kv_namespace_limit, (cache, 0, 0, 0))                                                         \
    ON_CACHE(kavern_kv_plan_export, (cache, 0, 0, NULL, 0, NULL))                                                 \
    ON_NONE(kavern_kv_plan_read, (NULL, 0, NULL))                                                                 \
    ON_CACHE(kavern_kv_plan_apply, (cache, NULL, NULL, 0, NULL))                                                  \
    ON_MANAGER(kavern_alloc, (manager, 0, 0, NULL, 0, NULL))                                                      \
    ON_MANAGER(kavern_alloc_zeroed, (manager, 0, 0, NULL, 0, NULL))                                               \
    ON_MANAGER(kavern_free, (manager, 0, NULL))                                                                   \
    ON_MANAGER(kavern_alloc_batch, (manager, 0, NULL, 0, NULL, 0, NULL))                                          \
    ON_MANAGER(kavern_free_batch, (manager, 0, NULL, NULL, NULL))                                                 \
    ON_MANAGER(kavern_address_info, (manager, 0, NULL))                                                           \
    ON_MANAGER(kavern_record_use, (manager, 0, NULL))                                                             \
    ON_MANAGER(kavern_address_pin, (manager, 0))                                                                  \
    ON_MANAGER(kavern_address_unpin, (manager, 0))                                                                \
    ON_MANAGER(kavern_tag, (manager, NULL, NULL))                                                                 \
    ON_MANAGER(kavern_can_allocate, (manager, 0, 0, NULL))                                                        \
    ON_MANAGER(kavern_memory_stats, (manager, NULL))                                                              \
    ON_MANAGER(kavern_manager_trim, (manager, NULL))                                                              \
    ON_MANAGER(kavern_manager_defragment, (manager, 0, NULL))                                                     \
    ON_MANAGER(kavern_manager_on_reclaim, (manager, NULL, NULL))                                                  \
    ON_MANAGER(kavern_copies_begin, (manager))                                                                    \
    ON_MANAGER(kavern_copies_end, (manager, NULL))                                                                \
    ON_MANAGER(kavern_capture_begin, (manager, NULL))                                                             \
    ON_MANAGER(kavern_capture_release, (manager, NULL, NULL))                                                     \
    ON_NONE(kavern_elastic_config_init, (NULL, 0))                                                                \
    ON_MANAGER(kavern_elastic_create, (manager, NULL, NULL))                                                      \
    ON_NONE(kavern_elastic_destroy, (NULL))                                                                       \
    ON_ELASTIC(kavern_elastic_commit, (elastic, 0, 0, NULL))                                                      \
    ON_ELASTIC(kavern_elastic_decommit, (elastic, 0, 0, NULL, NULL))                                              \
    ON_ELASTIC(kavern_elastic_is_committed, (elastic, 0, 0, NULL))                                                \
    ON_ELASTIC(kavern_elastic_base, (elastic, NULL))                                                              \
    ON_ELASTIC(kavern_elastic_resize, (elastic, 0, NULL, NULL))                                                   \
    ON_ELASTIC(kavern_elastic_stats, (elastic, NULL))                                                             \
    ON_NONE(kavern_shared_pool_config_init, (NULL, 0))                                                            \
    ON_MANAGER(kavern_shared_pool_create, (manager, NULL, NULL))                                                  \
    ON_NONE(kavern_shared_pool_destroy, (NULL))                                                                   \
    ON_SHARED(kavern_shared_pool_register_model, (shared, NULL, 0, 0, 0, 0))                                      \
    ON_SHARED(kavern_shared_pool_unregister_model, (shared, NULL))                                                \
    ON_SHARED(kavern_shared_pool_commit, (shared, NULL, 0, 0, NULL))                                              \
    ON_SHARED(kavern_shared_pool_decommit, (shared, NULL, 0, 0, NULL, NULL))                                      \
    ON_SHARED(kavern_shared_pool_base, (shared, NULL, NULL))                                                      \
    ON_SHARED(kavern_shared_pool_model_stats, (shared, NULL, NULL))                                               \
    ON_SHARED(kavern_shared_pool_stats, (shared, NULL))                                                           \
    ON_SHARED(kavern_shared_pool_pin_range, (shared, NULL, 0, 0))                                                 \
    ON_SHARED(kavern_shared_pool_unpin_range, (shared, NULL, 0, 0))                                               \
    ON_SHARED(kavern_shared_pool_on_reclaim, (shared, NULL, NULL, NULL))                                          \
    ON_MANAGER(kavern_sim_launch, (manager, NULL, NULL, 0, NULL, 0))                                              \
    ON_MANAGER(kavern_sim_report, (manager, NULL, 0, NULL))                                                       \
    ON_MANAGER(kavern_sim_seed, (manager, 1))

#endif
