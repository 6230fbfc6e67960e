//! Names for spdk_threads, and what can be sent to them.

use std::ffi::{CStr, CString, c_int, c_void};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use spdk_sys::{spdk_poller, spdk_thread};

use super::context::{self, Adoption};
use super::{cores, idle};
use crate::executor::{Call, Inbox, Sender, Turn, channel, user_code};
use crate::runtime::DRAIN_LIMIT;
use crate::{Error, ErrorKind, JoinHandle, Result, env, guard, sync};

/// Where the app thread's handle is kept while the runtime is up.
static APP_THREAD: Mutex<Option<ThreadHandle>> = Mutex::new(None);

/// Makes the current spdk_thread the app thread.
pub(crate) fn enter_app_thread() -> Result<ThreadHandle> {
    // SAFETY: spdk_get_thread reads a thread-local variable; it may be called anywhere.
    let thread = unsafe { spdk_sys::spdk_get_thread() };
    let thread = Error::check_ptr("set up the app thread", "", thread, libc::EPERM)?;
    // SAFETY: the thread is the current one, so it exists.
    let handle = unsafe { ThreadHandle::of(thread.as_ptr(), Inbox::new(idle::bell())) };
    context::install(handle.clone())?;
    context::list(&handle);
    *APP_THREAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle.clone());
    cores::enter(&handle);
    Ok(handle)
}

/// Sees to it that the current spdk_thread has a context, whoever made the thread: tasks, pollers
/// and descriptors need one.
pub(crate) fn adopt_current() -> Result<Adoption> {
    if let Some(adoption) = Adoption::join() {
        return Ok(adoption);
    }
    // SAFETY: spdk_get_thread reads a thread-local variable; it may be called anywhere.
    let thread = unsafe { spdk_sys::spdk_get_thread() };
    let thread = Error::check_ptr("adopt spdk_thread", "", thread, libc::EPERM)?;
    // SAFETY: the thread is the current one, so it exists.
    let handle = unsafe { ThreadHandle::of(thread.as_ptr(), Inbox::new(idle::bell())) };
    let context = context::install(handle.clone())?;
    context::list(&handle);
    Ok(Adoption::first(context))
}

/// Forgets the app thread, once the runtime has stopped.
pub(crate) fn leave_app_thread() {
    *APP_THREAD.lock().unwrap_or_else(PoisonError::into_inner) = None;
    cores::leave();
}

/// Finds and makes spdk_threads.
#[derive(Debug)]
pub struct Thread(());

impl Thread {
    /// The spdk_thread that the caller runs on, if it is one of this crate's: the app thread or
    /// one made by [`Thread::create`].
    #[doc(alias = "spdk_get_thread")]
    pub fn current() -> Option<ThreadHandle> {
        context::current().map(|context| context.handle().clone())
    }

    /// The app thread: the first one, on which SPDK's own set-up and its RPCs run, and the first
    /// task. Most of SPDK's management functions want to be called there.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`] outside of [`Runtime::run`](crate::Runtime::run).
    pub fn app() -> Result<ThreadHandle> {
        let app = APP_THREAD.lock().unwrap_or_else(PoisonError::into_inner);
        app.clone().ok_or_else(|| not_running("find the app thread", ""))
    }

    /// Makes an spdk_thread on core `core`, which must be in the runtime's core mask. It lives
    /// until [`ThreadHandle::exit`], or until the runtime stops.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the runtime does not use that core or the name contains
    /// a NUL; [`ErrorKind::NotRunning`]; [`ErrorKind::NoMemory`].
    #[doc(alias = "spdk_thread_create")]
    pub fn create(name: &str, core: u32) -> Result<ThreadHandle> {
        const WHAT: &str = "create spdk_thread";
        env::check_running(WHAT)?;
        let c_name = CString::new(name)
            .map_err(|_| Error::new(ErrorKind::InvalidArgument, WHAT, name, "contains a NUL"))?;
        // SAFETY: while SPDK runs (checked) the mask is set up and is not changed; get_cpu takes
        // any number.
        let used = unsafe { spdk_sys::spdk_cpuset_get_cpu(spdk_sys::spdk_app_get_core_mask(), core) };
        if !used {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                WHAT,
                name,
                format!("core {core} is not in the runtime's core mask"),
            ));
        }
        // SAFETY: a cpuset is a plain bit array: zero is the empty set. The core is in a set, so
        // within the bound. spdk_thread_create copies set and name, and may be called on any
        // thread while SPDK runs.
        let thread = unsafe {
            let mut set: spdk_sys::spdk_cpuset = std::mem::zeroed();
            spdk_sys::spdk_cpuset_set_cpu(&mut set, core, true);
            spdk_sys::spdk_thread_create(c_name.as_ptr(), &mut set)
        };
        let thread = Error::check_ptr(WHAT, name, thread, libc::ENOMEM)?;
        // SAFETY: the thread was created above, and nobody else could make it exit yet.
        let handle = unsafe { ThreadHandle::of(thread.as_ptr(), Inbox::new(idle::bell_of(core))) };
        let arg = Box::into_raw(Box::new(handle.clone()));
        // SAFETY: the thread exists (as above). The message owns the box.
        let rc =
            unsafe { spdk_sys::spdk_thread_send_msg(thread.as_ptr(), Some(adopt), arg.cast::<c_void>()) };
        if rc != 0 {
            // SAFETY: the message was not sent, so the box is ours again. The idle spdk_thread
            // that is left ends with the runtime.
            drop(unsafe { Box::from_raw(arg) });
            return Err(Error::from_errno(WHAT, name, rc));
        }
        context::list(&handle);
        Ok(handle)
    }
}

/// The first message to a thread made here: sets up its executor.
unsafe extern "C" fn adopt(arg: *mut c_void) {
    guard::ffi((), || {
        // SAFETY: `create` sends a box of this type, once.
        let handle = unsafe { Box::from_raw(arg.cast::<ThreadHandle>()) };
        if let Err(error) = context::install(*handle) {
            // Its inbox is closed: what was sent to it ends as canceled.
            eprintln!("spdk-rs: {error}");
        }
    });
}

fn not_running(what: &'static str, name: &str) -> Error {
    Error::new(
        ErrorKind::NotRunning,
        what,
        name,
        "the spdk_thread has exited, or SPDK is not running",
    )
}

/// Names an spdk_thread and sends work to it. Can be cloned and sent anywhere, and outlives the
/// thread (what is sent then is refused).
#[derive(Clone)]
pub struct ThreadHandle(Arc<Inner>);

struct Inner {
    id: u64,
    name: String,
    inbox: sync::Arc<Inbox>,
    /// Descriptors, channels and pollers that belong to the thread.
    owned: AtomicUsize,
}

static_assertions::assert_impl_all!(ThreadHandle: Send, Sync);

impl ThreadHandle {
    /// # Safety
    /// The thread exists.
    unsafe fn of(thread: *mut spdk_thread, inbox: sync::Arc<Inbox>) -> Self {
        // SAFETY: the thread exists (contract); its name is a C string inside of it, which is
        // copied here.
        let (id, name) = unsafe {
            let name = CStr::from_ptr(spdk_sys::spdk_thread_get_name(thread));
            let id = spdk_sys::spdk_thread_get_id(thread);
            (id, name.to_string_lossy().into_owned())
        };
        Self(Arc::new(Inner {
            id,
            name,
            inbox,
            owned: AtomicUsize::new(0),
        }))
    }

    /// SPDK's number of the thread, never given twice.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The name it was created with.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the caller runs on this thread.
    #[inline]
    pub fn is_current(&self) -> bool {
        // Not by way of the context, which is gone before the last callbacks come.
        // SAFETY: spdk_get_thread reads a thread-local variable; the current thread exists.
        unsafe {
            let thread = spdk_sys::spdk_get_thread();
            !thread.is_null() && spdk_sys::spdk_thread_get_id(thread) == self.id()
        }
    }

    pub(crate) fn inbox(&self) -> &sync::Arc<Inbox> {
        &self.0.inbox
    }

    /// Runs `message` on the thread, once, after what was sent before it.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`] if the thread has exited.
    #[doc(alias = "spdk_thread_send_msg")]
    pub fn send(&self, message: impl FnOnce() + Send + 'static) -> Result<()> {
        self.0
            .inbox
            .call(Box::new(message))
            .map_err(|_| not_running("send message", self.name()))
    }

    /// Runs a future on the thread. `make` is sent there and makes the future, which therefore
    /// need not be `Send`. The handle can be awaited anywhere.
    ///
    /// What belongs to one thread cannot be taken along to another:
    ///
    /// ```compile_fail,E0277
    /// # fn example(thread: spdk_rs::reactor::ThreadHandle, channel: spdk_rs::bdev::Channel) {
    /// let _ = thread.spawn_on(move || async move { channel.flush().await });
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`] if the thread has exited.
    pub fn spawn_on<M, F>(&self, make: M) -> Result<JoinHandle<F::Output>>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        let (sender, handle) = channel();
        let message = move || {
            // A closing executor drops its messages, so there is a context if this runs.
            if let Some(context) = context::current() {
                // `make` runs inside of the task, so that its panic is the task's.
                let future = async move { make().await };
                context.executor().spawn_with(future, sender);
            }
        };
        self.0
            .inbox
            .call(Box::new(message))
            .map_err(|_| not_running("spawn task", self.name()))?;
        Ok(handle)
    }

    /// Makes the thread exit: its tasks are dropped, what they began is finished, and then SPDK
    /// lets the thread go. Resolves at that point. Descriptors, channels and pollers of the
    /// thread that are kept alive elsewhere hold it up; after
    /// [`DRAIN_LIMIT`](crate::runtime::DRAIN_LIMIT) it resolves all the same, and the thread goes
    /// when they do.
    ///
    /// Does nothing to a thread that has exited, nor to the app thread, which lives as long as
    /// the runtime, nor to a thread that SPDK has made.
    #[doc(alias = "spdk_thread_exit")]
    pub async fn exit(&self) {
        if Thread::app().is_ok_and(|app| app.id() == self.id()) {
            return;
        }
        let (sender, handle) = channel::<()>();
        let this = self.clone();
        let message = move || {
            if context::is_adopted() {
                return; // not ours to end
            }
            context::close_current();
            Exit::begin(this, sender);
        };
        if self.0.inbox.call(Box::new(message)).is_ok() {
            // "Canceled", from the sender that is dropped, is the good news here.
            let _ = handle.await;
        }
    }
}

/// An exit that waits until nothing belongs to the thread any more: SPDK waits for five seconds,
/// and then destroys the thread under whatever is left.
struct Exit {
    thread: ThreadHandle,
    since: Instant,
    poller: *mut spdk_poller,
    /// Who waits for it.
    sender: Option<Sender<()>>,
}

impl Exit {
    /// On the thread that is to exit, after its context was closed.
    fn begin(thread: ThreadHandle, sender: Sender<()>) {
        let exit = Box::into_raw(Box::new(Self {
            thread,
            since: Instant::now(),
            poller: std::ptr::null_mut(),
            sender: Some(sender),
        }));
        // SAFETY: this runs on an spdk_thread. The poller owns the box; it frees it when it
        // unregisters itself. It is not called before this function has returned.
        unsafe {
            let arg = exit.cast::<c_void>();
            let poller =
                spdk_sys::spdk_poller_register_named(Some(Self::poll), arg, 0, c"rust-exit".as_ptr());
            (*exit).poller = poller;
            if poller.is_null() {
                drop(Box::from_raw(exit));
                exit_current();
            }
        }
    }

    unsafe extern "C" fn poll(arg: *mut c_void) -> c_int {
        guard::ffi(0, || {
            // SAFETY: the box of `begin`, until it is freed below.
            let this = unsafe { &mut *arg.cast::<Self>() };
            if this.thread.0.owned.load(Ordering::Acquire) > 0 {
                if this.since.elapsed() >= DRAIN_LIMIT {
                    this.sender = None;
                }
                return 1; // nothing wakes a reactor when the last of them goes: it stays awake
            }
            // SAFETY: the poller unregisters itself, on its thread; its argument goes with it.
            unsafe {
                spdk_sys::spdk_poller_unregister(&mut this.poller);
                exit_current();
                drop(Box::from_raw(arg.cast::<Self>()));
            }
            1
        })
    }
}

/// Lets SPDK end the current spdk_thread.
fn exit_current() {
    // SAFETY: spdk_thread_exit wants the current thread, which this is. It is called from inside
    // the thread's poll; the reactor destroys the thread after that.
    unsafe {
        let thread = spdk_sys::spdk_get_thread();
        if !thread.is_null() {
            spdk_sys::spdk_thread_exit(thread);
        }
    }
}

impl fmt::Debug for ThreadHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadHandle")
            .field("id", &self.id())
            .field("name", &self.name())
            .finish()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.0.owned.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The spdk_thread that owns a C object, for the checks that hold in release builds too. The
/// thread does not exit as long as there is one.
pub(crate) struct Owner(ThreadHandle);

impl Owner {
    /// The current spdk_thread.
    pub(crate) fn current(what: &'static str, device: &str) -> Result<Self> {
        let Some(thread) = Thread::current() else {
            return Err(Error::new(
                ErrorKind::WrongThread,
                what,
                device,
                "must be called on one of SPDK's threads, inside Runtime::run",
            ));
        };
        thread.0.owned.fetch_add(1, Ordering::AcqRel);
        Ok(Self(thread))
    }

    /// Its name, which can go to other threads.
    pub(crate) fn handle(&self) -> &ThreadHandle {
        &self.0
    }

    /// See [`Inbox::home`].
    #[inline]
    pub(crate) fn home(&self) -> usize {
        self.0.inbox().home()
    }

    /// Whether the caller runs on the owner.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        // The one does for tasks what the other asks C.
        Turn::is_at(self.home()) || self.0.is_current()
    }

    /// Refuses `what` on any other thread.
    pub(crate) fn check(&self, what: &'static str, device: &str) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::WrongThread,
            what,
            device,
            format!("belongs to the spdk_thread '{}'", self.0.name()),
        ))
    }

    /// Runs `body` on the owner: now if this is it, else by a message, also while the thread is on
    /// its way out, which waits for it. If the owner has gone, `body` is leaked: what it would free
    /// belongs to a thread that is no more.
    pub(crate) fn run(&self, body: impl FnOnce() + 'static) {
        if self.is_current() {
            body();
            return;
        }
        let home = Home {
            body: Some(body),
            owner: self.another(),
        };
        let call: Call = Box::new(move || drop(home));
        if let Err(call) = self.0.inbox().call(call) {
            // Its tasks have ended; SPDK's own messages still arrive.
            send_to(self.0.id(), call);
        }
    }

    fn another(&self) -> Self {
        self.0.0.owned.fetch_add(1, Ordering::AcqRel);
        Self(self.0.clone())
    }
}

/// Something on its way to the thread that owns it, which does not exit meanwhile. It is done where
/// this is dropped, if that is there.
struct Home<F: FnOnce()> {
    body: Option<F>,
    owner: Owner,
}

// SAFETY: `body` belongs to the owner (that is what `Owner::run` is for); it is called there, and
// nothing else is done with it anywhere else.
unsafe impl<F: FnOnce()> Send for Home<F> {}

impl<F: FnOnce()> Drop for Home<F> {
    /// It has arrived, as a message that is run, or that is dropped by its own thread, whose tasks
    /// end; or it cannot be sent.
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            if self.owner.is_current() {
                body();
            } else {
                std::mem::forget(body);
            }
        }
    }
}

/// Sends an SPDK message to a thread, if there is one of that number.
fn send_to(thread: u64, call: Call) {
    unsafe extern "C" fn receive(arg: *mut c_void) {
        guard::ffi((), || {
            // SAFETY: the box of `send_to`, once.
            let call = unsafe { Box::from_raw(arg.cast::<Call>()) };
            user_code(call);
        });
    }
    // SAFETY: SPDK looks the number up under its lock. What the call holds keeps the thread from
    // exiting; the message owns the box.
    unsafe {
        let thread = spdk_sys::spdk_thread_get_by_id(thread);
        if thread.is_null() {
            return;
        }
        let arg = Box::into_raw(Box::new(call));
        if spdk_sys::spdk_thread_send_msg(thread, Some(receive), arg.cast::<c_void>()) != 0 {
            drop(Box::from_raw(arg));
        }
    }
}
