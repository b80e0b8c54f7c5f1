//! Declarations of the exported functions, until the library's own are re-exported.
#![expect(non_camel_case_types, reason = "these names are the C header's")]
use kavern::c_api::kv_types::*;
use kavern::c_api::types::*;
use std::ffi::c_void;


unsafe extern "C" {
    pub(crate) fn kavern_kv_cache_config_init(cfg: *mut kavern_kv_cache_config, size: usize)
    -> kavern_status;
    pub(crate) fn kavern_kv_cache_create(
        m: *mut kavern_manager,
        cfg: *const kavern_kv_cache_config,
        out: *mut *mut kavern_kv_cache,
    ) -> kavern_status;
    pub(crate) fn kavern_kv_cache_destroy(c: *mut *mut kavern_kv_cache) -> kavern_status;
    pub(crate) fn kavern_kv_match(
        c: *mut kavern_kv_cache,
        n: usize,
        r: *const kavern_kv_request,
        out: *mut kavern_kv_match_result,
    ) -> kavern_status;
    pub(crate) fn kavern_kv_step(
        c: *mut kavern_kv_cache,
        step: u64,
        n: usize,
        ops: *const kavern_kv_op,
        out: *mut kavern_kv_op_result,
    ) -> kavern_status;
    pub(crate) fn kavern_kv_tables(
        c: *mut kavern_kv_cache,
        step: u64,
        s: *mut c_void,
        out: *mut kavern_kv_step_tables,
    ) -> kavern_status;
    pub(crate) fn kavern_kv_step_done(c: *mut kavern_kv_cache, step: u64, s: *mut c_void) -> kavern_status;
    pub(crate) fn kavern_kv_stats(c: *const kavern_kv_cache, out: *mut kavern_kv_statistics)
    -> kavern_status;
    pub(crate) fn kavern_kv_validate(c: *const kavern_kv_cache) -> kavern_status;
    pub(crate) fn kavern_kv_fill_pattern(
        c: *mut kavern_kv_cache,
        s: *mut c_void,
        group: u32,
        n: usize,
        ids: *const i32,
        seeds: *const u64,
    ) -> kavern_status;
    pub(crate) fn kavern_kv_check_pattern(
        c: *mut kavern_kv_cache,
        s: *mut c_void,
        group: u32,
        n: usize,
        ids: *const i32,
        seeds: *const u64,
    ) -> kavern_status;
    pub(crate) fn kavern_kv_pattern_result(
        c: *mut kavern_kv_cache,
        s: *mut c_void,
        out: *mut kavern_kv_check_result,
    ) -> kavern_status;
}
