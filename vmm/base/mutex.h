// std::mutex with clang's thread-safety annotations: every lock names what it guards, and clang 16
// (-Wthread-safety) checks it.

#pragma once

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define QS_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define QS_THREAD_ANNOTATION(x)
#endif

#define GUARDED_BY(mutex) QS_THREAD_ANNOTATION(guarded_by(mutex))
#define REQUIRES_LOCK(mutex) QS_THREAD_ANNOTATION(requires_capability(mutex))
#define EXCLUDES_LOCK(mutex) QS_THREAD_ANNOTATION(locks_excluded(mutex))

namespace base {

class QS_THREAD_ANNOTATION(capability("mutex")) Mutex final {
 public:
  void lock() QS_THREAD_ANNOTATION(acquire_capability()) { mutex_.lock(); }
  bool try_lock() QS_THREAD_ANNOTATION(try_acquire_capability(true)) { return mutex_.try_lock(); }
  void unlock() QS_THREAD_ANNOTATION(release_capability()) { mutex_.unlock(); }
  // Tells the analysis what it cannot see: the caller's caller holds the lock. Checks nothing.
  void assert_held() const QS_THREAD_ANNOTATION(assert_capability(this)) {}

 private:
  friend class Condition;
  std::mutex mutex_;
};

class QS_THREAD_ANNOTATION(scoped_lockable) MutexLock final {
 public:
  explicit MutexLock(Mutex& mutex) QS_THREAD_ANNOTATION(acquire_capability(mutex)) : mutex_(mutex) {
    mutex_.lock();
  }
  ~MutexLock() QS_THREAD_ANNOTATION(release_capability()) { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

class Condition final {
 public:
  // May wake without cause: wait in a loop over what you wait for.
  void wait(Mutex& mutex) REQUIRES_LOCK(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }
  void notify_all() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace base
