//! What the header names and a later version serves is refused clearly, and never ignored.

use std::ptr;

use kavern::c_api::cache::{kavern_kv_cache_config_init, kavern_kv_cache_create, kavern_kv_cache_destroy};
use kavern::c_api::kv_types::*;
use kavern::c_api::manager::{
    kavern_manager_config, kavern_manager_config_init, kavern_manager_create, kavern_manager_destroy,
};
use kavern::c_api::step::kavern_kv_step;
use kavern::c_api::types::{kavern_kv_cache, kavern_manager};

const UNSUPPORTED: i32 = -6;

fn zeroed<T: Copy>() -> T {
    // SAFETY: used for the header's structs only, in which all zeros are values.
    unsafe { std::mem::zeroed() }
}

#[test]
fn what_comes_with_later_versions_is_refused_and_not_ignored() {
    let mut settings: kavern_manager_config = zeroed();
    let mut manager: *mut kavern_manager = ptr::null_mut();
    // SAFETY: a struct of the size that is given.
    assert_eq!(unsafe { kavern_manager_config_init(&raw mut settings, size_of_val(&settings)) }, 0);
    // SAFETY: filled above.
    assert_eq!(unsafe { kavern_manager_create(&raw const settings, &raw mut manager) }, 0);
    let plain = kavern_kv_group {
        struct_size: size_of::<kavern_kv_group>() as u32,
        kind: 7,
        block_tokens: 1,
        block_bytes: 64,
        ..zeroed()
    };
    let create = |group: kavern_kv_group, change: &dyn Fn(&mut kavern_kv_cache_config)| {
        let mut config: kavern_kv_cache_config = zeroed();
        let mut cache: *mut kavern_kv_cache = ptr::null_mut();
        // SAFETY: a struct of the size that is given.
        assert_eq!(unsafe { kavern_kv_cache_config_init(&raw mut config, size_of_val(&config)) }, 0);
        (config.groups, config.group_count, config.capacity_blocks) = (&raw const group, 1, 4);
        change(&mut config);
        // SAFETY: filled above; the group lives.
        let status = unsafe { kavern_kv_cache_create(manager, &raw const config, &raw mut cache) };
        (status, cache)
    };
    assert_eq!(create(kavern_kv_group { slot_classes: 1, ..plain }, &|_| ()).0, UNSUPPORTED);
    let name = c"fp8".as_ptr();
    assert_eq!(create(plain, &|config| config.fingerprint = name).0, UNSUPPORTED);
    assert_eq!(create(plain, &|config| config.codec_vram = name).0, UNSUPPORTED);
    assert_eq!(create(plain, &|config| config.codec_ram = name).0, UNSUPPORTED);
    assert_eq!(create(plain, &|config| config.codec_disk = name).0, UNSUPPORTED);
    assert_eq!(create(plain, &|config| config.codec_remote = name).0, UNSUPPORTED);
    let (status, mut cache) = create(plain, &|_| ());
    assert_eq!(status, 0);
    for kind in [8, 16, 17, 19] {
        let op = kavern_kv_op { struct_size: size_of::<kavern_kv_op>() as u32, kind, ..zeroed() };
        let mut result = kavern_kv_op_result::default();
        // SAFETY: one operation without pointers, room for its result.
        assert_eq!(unsafe { kavern_kv_step(cache, 1, 1, &raw const op, &raw mut result) }, 1);
        let expected = match kind {
            8 => -4,
            19 => -1,
            _ => UNSUPPORTED,
        };
        assert_eq!(result.status, expected, "operation {kind}");
    }
    // SAFETY: handles that were made above.
    assert_eq!(unsafe { kavern_kv_cache_destroy(&raw mut cache) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { kavern_manager_destroy(&raw mut manager) }, 0);
}
