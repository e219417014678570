// Persistent worker threads that share out numbered tasks, and scratch memory per thread.
#include "CKernels.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAXIMUM_THREADS = 256, SPINS = 4000 };

static struct {
    pthread_mutex_t busy;  // held by the thread whose tasks run
    pthread_mutex_t lock;  // guards the fields below it together with the conditions
    pthread_cond_t wake, done;
    long threads;
    _Atomic unsigned generation;  // rises with every call
    long places;                  // workers that may still join this call
    _Atomic long joined;          // workers inside this call
    tributary_task task;
    void *context;
    long count;
    _Atomic long next;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static pthread_once_t start_once = PTHREAD_ONCE_INIT;
static _Thread_local int inside_task = 0;
static _Thread_local long limit = 0;

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_tasks(tributary_task task, void *context, long count) {
    inside_task = 1;
    for (;;) {
        long index = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
        if (index >= count) break;
        task(context, index);
    }
    inside_task = 0;
}

static void *work(void *argument) {
    (void)argument;
    unsigned seen = 0;
    for (;;) {
        // Calls follow one another within microseconds during a step: look for the next one briefly before sleeping.
        for (int spin = 0; spin < SPINS && atomic_load_explicit(&pool.generation, memory_order_acquire) == seen; spin++)
            pause_briefly();
        pthread_mutex_lock(&pool.lock);
        while (atomic_load_explicit(&pool.generation, memory_order_relaxed) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        seen = atomic_load_explicit(&pool.generation, memory_order_relaxed);
        // The caller closes the call as soon as no task is left: it never waits for a worker that is late.
        int mine = pool.places > 0;
        if (mine) {
            pool.places--;
            atomic_fetch_add_explicit(&pool.joined, 1, memory_order_relaxed);
        }
        tributary_task task = pool.task;
        void *context = pool.context;
        long count = pool.count;
        pthread_mutex_unlock(&pool.lock);
        if (!mine) continue;
        take_tasks(task, context, count);
        pthread_mutex_lock(&pool.lock);
        if (atomic_fetch_sub_explicit(&pool.joined, 1, memory_order_release) == 1) pthread_cond_signal(&pool.done);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

static void start(void) {
    long threads = sysconf(_SC_NPROCESSORS_ONLN);
    const char *text = getenv("TRIBUTARY_THREADS");
    if (text && *text) {
        char *end;
        long value = strtol(text, &end, 10);
        if (*end == 0 && value >= 1) threads = value;
    }
    if (threads < 1) threads = 1;
    if (threads > MAXIMUM_THREADS) threads = MAXIMUM_THREADS;
    pool.threads = 1;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 4 << 20);
    for (long number = 0; number < threads - 1; number++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, work, NULL) != 0) break;  // fewer threads, same results
        pool.threads++;
    }
    pthread_attr_destroy(&attributes);
}

long tributary_thread_count(void) {
    pthread_once(&start_once, start);
    return limit > 0 && limit < pool.threads ? limit : pool.threads;
}

long tributary_limit_threads(long count) {
    long before = limit;
    limit = count;
    return before;
}

void tributary_parallel_for(long count, tributary_task task, void *context) {
    if (count <= 0) return;
    long threads = inside_task ? 1 : tributary_thread_count();
    if (threads > count) threads = count;
    if (threads <= 1 || pthread_mutex_trylock(&pool.busy) != 0) {
        for (long index = 0; index < count; index++) task(context, index);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    pool.task = task;
    pool.context = context;
    pool.count = count;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    pool.places = threads - 1;
    atomic_fetch_add_explicit(&pool.generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    take_tasks(task, context, count);
    pthread_mutex_lock(&pool.lock);
    pool.places = 0;
    pthread_mutex_unlock(&pool.lock);
    for (int spin = 0; spin < SPINS && atomic_load_explicit(&pool.joined, memory_order_acquire) > 0; spin++) pause_briefly();
    pthread_mutex_lock(&pool.lock);
    while (atomic_load_explicit(&pool.joined, memory_order_acquire) > 0) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.busy);
}

// Scratch: a few growing blocks per thread, freed when it ends.

struct scratch_block {
    void *memory;
    size_t bytes;
};
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void free_scratch(void *value) {
    struct scratch_block *blocks = value;
    for (int slot = 0; slot < TRIBUTARY_SCRATCH_SLOTS; slot++) free(blocks[slot].memory);
    free(blocks);
}

static void make_scratch_key(void) {
    pthread_key_create(&scratch_key, free_scratch);
}

static void out_of_memory(size_t bytes) {
    fprintf(stderr, "tributary: no memory left for %zu bytes of scratch\n", bytes);
    abort();
}

static _Atomic long growths = 0;
long tributary_scratch_growths(void) {
    return growths;
}

void *tributary_scratch(int slot, size_t bytes) {
    pthread_once(&scratch_once, make_scratch_key);
    struct scratch_block *blocks = pthread_getspecific(scratch_key);
    if (!blocks) {
        blocks = calloc(TRIBUTARY_SCRATCH_SLOTS, sizeof *blocks);
        if (!blocks) out_of_memory(sizeof *blocks * TRIBUTARY_SCRATCH_SLOTS);
        pthread_setspecific(scratch_key, blocks);
    }
    struct scratch_block *block = &blocks[slot];
    if (block->bytes < bytes) {
        growths++;
        free(block->memory);
        size_t rounded = (bytes + 4095) & ~(size_t)4095;
        block->memory = NULL;
        block->bytes = 0;
        if (posix_memalign(&block->memory, 64, rounded) != 0) out_of_memory(rounded);
        block->bytes = rounded;
    }
    return block->memory;
}
