// What the C half of the engine offers to Swift: worker threads, scratch memory, and (in the other headers) the hot loops.
#ifndef TRIBUTARY_CKERNELS_H
#define TRIBUTARY_CKERNELS_H
#include <stddef.h>
#include <stdint.h>

// ---- threads.c -----------------------------------------------------------------------------------------------

typedef void (*tributary_task)(void *context, long index);

/// Runs task(context, 0), ..., task(context, count - 1), each exactly once, on the calling thread and the pool's
/// workers, and returns when all have ended. A call from inside a task, or while another thread uses the pool, runs
/// its tasks one after another on its own thread: what a task computes never depends on which thread runs it.
void tributary_parallel_for(long count, tributary_task task, void *context);

/// Threads that tributary_parallel_for uses at most, the caller included: TRIBUTARY_THREADS, or the number of cores.
long tributary_thread_count(void);

/// Lowers the number of threads for calls from this thread; 0 removes the limit. Returns the limit before.
long tributary_limit_threads(long count);

/// Memory of this thread, aligned to 64 bytes, of at least `bytes`: valid until the next call with the same slot on
/// the same thread; kept and reused, freed when the thread ends. Aborts if the machine has no memory left.
#define TRIBUTARY_SCRATCH_SLOTS 12
void *tributary_scratch(int slot, size_t bytes);

#endif
