//! A device as SPDK knows it: registered, and freed when SPDK has let go of it.
//!
//! Its end comes in steps, whoever begins it (an unregistration, or SPDK's own end):
//!
//! 1. everybody who has the device open is told, and closes it;
//! 2. SPDK calls `destruct`, on the thread of whoever closed it last;
//! 3. on the app thread, the channels that are still on their way out are waited for;
//! 4. there the device is dropped, SPDK is told, and the memory is freed.

use std::cell::UnsafeCell;
use std::ffi::{CString, c_int, c_void};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

use spdk_sys::{spdk_bdev, spdk_bdev_fn_table, spdk_bdev_io_type, spdk_io_channel, spdk_thread};

use super::BlockDevice;
use super::channel;
use super::properties::Properties;
use super::registered::{Place, Registered};
use crate::bdev::kind::Kinds;
use crate::executor::user_code_within_c;
use crate::{Error, ErrorKind, Result, bdev, guard};

/// What SPDK has a pointer to: as its bdev, as the context in it, and as its io_device.
#[repr(C)] // a pointer to it is one to the bdev
pub(super) struct Disk<D> {
    bdev: UnsafeCell<spdk_bdev>,
    device: ManuallyDrop<D>,
    kinds: Kinds,
    alignment: usize,
    /// On which it was registered; it lives as long as SPDK runs.
    app: *mut spdk_thread,
    place: Arc<Place>,
    _texts: Texts,
}

/// What the bdev has pointers to.
struct Texts {
    name: CString,
    product: CString,
}

impl<D: BlockDevice> Disk<D> {
    const TABLE: spdk_bdev_fn_table = spdk_bdev_fn_table {
        destruct: Some(destruct::<D>),
        submit_request: Some(channel::submit_request::<D>),
        io_type_supported: Some(io_type_supported::<D>),
        get_io_channel: Some(get_io_channel),
        dump_info_json: None,
        write_config_json: None,
        get_spin_time: None,
    };

    /// # Safety
    /// The disk is there, and outlives the reference.
    #[inline]
    pub(super) unsafe fn device<'a>(this: NonNull<Self>) -> &'a D {
        // SAFETY: the device is not changed until it is dropped (contract).
        unsafe { &(*this.as_ptr()).device }
    }

    /// # Safety
    /// The disk is there.
    pub(super) unsafe fn abilities(this: NonNull<Self>) -> (Kinds, usize) {
        // SAFETY: by contract; neither changes.
        unsafe { ((*this.as_ptr()).kinds, (*this.as_ptr()).alignment) }
    }
}

pub(super) fn register<D: BlockDevice>(name: &str, device: D) -> Result<Registered> {
    const WHAT: &str = "register bdev";
    let c_name = bdev::new_name(WHAT, name)?;
    let properties = device.properties();
    if let Some(problem) = properties.problem() {
        return Err(Error::new(ErrorKind::InvalidArgument, WHAT, name, problem));
    }
    let texts = Texts {
        name: c_name,
        product: CString::new(&*properties.product).unwrap_or_default(), // without NULs (checked)
    };
    let io_device = CString::new(format!("rust_{name}")).unwrap_or_default(); // as the name
    let disk = Box::into_raw(Box::new(Disk {
        bdev: UnsafeCell::new(describe::<D>(&properties, &texts)),
        device: ManuallyDrop::new(device),
        kinds: properties.kinds,
        alignment: properties.alignment,
        // SAFETY: reads a thread-local variable: the app thread's (new_name).
        app: unsafe { spdk_sys::spdk_get_thread() },
        place: Place::new(),
        _texts: texts,
    }));
    let bdev = disk.cast::<spdk_bdev>();
    // SAFETY: on the app thread (new_name). The disk stays where it is until `freed`, and so do
    // its texts; the io_device's name is copied. The io_device must be there before the bdev,
    // which may be opened at once.
    let (place, rc) = unsafe {
        let place = Arc::clone(&(*disk).place);
        place.set(bdev);
        (*bdev).ctxt = disk.cast();
        spdk_sys::spdk_io_device_register(
            disk.cast(),
            Some(channel::create::<D>),
            Some(channel::destroy::<D>),
            channel::CONTEXT_SIZE,
            io_device.as_ptr(),
        );
        (place, spdk_sys::spdk_bdev_register(bdev))
    };
    if rc != 0 {
        // SAFETY: SPDK has not taken the bdev, so nobody has a channel of the io_device, which
        // goes at once; then the disk is ours again.
        unsafe {
            spdk_sys::spdk_io_device_unregister(disk.cast(), None);
            let mut disk = Box::from_raw(disk);
            ManuallyDrop::drop(&mut disk.device);
        }
        return Err(Error::from_errno(WHAT, name, rc));
    }
    Ok(Registered::new(name, place, channel::drain::<D>))
}

/// What SPDK is told of the device; `texts` must stay with it.
fn describe<D: BlockDevice>(properties: &Properties, texts: &Texts) -> spdk_bdev {
    // SAFETY: a plain C struct, for which zero is valid, and what SPDK expects of a new one.
    let mut bdev: spdk_bdev = unsafe { std::mem::zeroed() };
    bdev.name = texts.name.as_ptr().cast_mut();
    bdev.product_name = texts.product.as_ptr().cast_mut();
    bdev.write_cache = c_int::from(properties.write_cache);
    bdev.blocklen = properties.block_size;
    bdev.blockcnt = properties.num_blocks;
    bdev.required_alignment = properties.alignment.trailing_zeros() as u8; // at most 12
    bdev.optimal_io_boundary = properties.boundary;
    bdev.split_on_optimal_io_boundary = properties.split;
    bdev.md_len = properties.metadata; // not interleaved: zero
    if let Some(uuid) = properties.uuid {
        // SAFETY: a UUID of SPDK's is 16 bytes of no alignment.
        unsafe { (&raw mut bdev.uuid).cast::<[u8; 16]>().write(uuid.into_bytes()) };
    }
    // SAFETY: returns the address of a static module, which is on SPDK's list since before main.
    bdev.module = unsafe { spdk_sys::shim_bdev_module() };
    bdev.fn_table = &Disk::<D>::TABLE;
    bdev
}

unsafe extern "C" fn io_type_supported<D: BlockDevice>(ctx: *mut c_void, io_type: spdk_bdev_io_type) -> bool {
    // SAFETY: SPDK passes the context of a registered bdev: its disk.
    let (kinds, _) = unsafe { Disk::<D>::abilities(NonNull::new_unchecked(ctx.cast())) };
    kinds.contains(io_type)
}

unsafe extern "C" fn get_io_channel(ctx: *mut c_void) -> *mut spdk_io_channel {
    // SAFETY: the context is the io_device, too, which is registered as long as the bdev is.
    unsafe { spdk_sys::spdk_get_io_channel(ctx) }
}

/// Everybody has closed the device; their channels are gone or on their way out. On any thread.
unsafe extern "C" fn destruct<D: BlockDevice>(ctx: *mut c_void) -> c_int {
    const LATER: c_int = 1;
    let disk = ctx.cast::<Disk<D>>();
    // SAFETY: SPDK calls this once and leaves the disk to us; `end` is called once.
    unsafe {
        let app = (*disk).app;
        // There, because this thread may exit before the last channel has gone.
        if spdk_sys::spdk_get_thread() == app || spdk_sys::spdk_thread_send_msg(app, Some(end::<D>), ctx) != 0
        {
            end::<D>(ctx);
        }
    }
    LATER
}

unsafe extern "C" fn end<D: BlockDevice>(ctx: *mut c_void) {
    let disk = ctx.cast::<Disk<D>>();
    // SAFETY: nobody but us can free the disk. The io_device of `register` is unregistered once;
    // SPDK calls back once, by a message to this thread, when the last channel has gone. It
    // refuses while channels are iterated over, so that is waited for.
    unsafe {
        let app = spdk_sys::spdk_get_thread();
        if (*disk).place.is_needed() && spdk_sys::spdk_thread_send_msg(app, Some(end::<D>), ctx) == 0 {
            return;
        }
        spdk_sys::spdk_io_device_unregister(ctx, Some(freed::<D>));
    }
}

/// Nothing of the device is left but the disk.
unsafe extern "C" fn freed<D: BlockDevice>(io_device: *mut c_void) {
    let disk = io_device.cast::<Disk<D>>();
    // SAFETY: SPDK has let go of the disk but for the callback that spdk_bdev_destruct_done
    // looks up in the bdev. Its users know that a device that was destroyed is not there any more.
    unsafe {
        (*disk).place.set(std::ptr::null_mut());
        let device = &raw mut (*disk).device;
        guard::ffi((), || user_code_within_c(|| ManuallyDrop::drop(&mut *device)));
        spdk_sys::spdk_bdev_destruct_done(disk.cast(), 0);
        drop(Box::from_raw(disk));
    }
}
