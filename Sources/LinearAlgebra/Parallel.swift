/// Work shared out over the engine's own threads, by the shape of the problem only.

import CKernels

/// Tasks over persistent worker threads.
///
/// The number of tasks, and what each computes, must come from shapes and never from `threadCount`: then results are
/// the same bits for every number of threads. A call from inside a task runs its tasks one after another.
public enum Parallel {
    /// Threads used at most, the caller's included: `TRIBUTARY_THREADS`, or the number of cores.
    public static var threadCount: Int { tributary_thread_count() }

    /// Runs `body(0)`, ..., `body(count - 1)`, each once, in any order and on any thread, and returns when all have
    /// ended. Two tasks must not write to the same memory.
    public static func forEach(count: Int, _ body: (Int) -> Void) {
        guard count > 1 else {
            if count == 1 { body(0) }
            return
        }
        withoutActuallyEscaping(body) { escapable in
            withUnsafePointer(to: escapable) { pointer in
                tributary_parallel_for(
                    count,
                    { context, index in context!.assumingMemoryBound(to: ((Int) -> Void).self).pointee(index) },
                    UnsafeMutableRawPointer(mutating: pointer))
            }
        }
    }

    /// Runs `body` with at most `count` threads for every `forEach` that it calls from this thread.
    public static func limited<Result>(toThreads count: Int, _ body: () throws -> Result) rethrows -> Result {
        let before = tributary_limit_threads(max(1, count))
        defer { _ = tributary_limit_threads(before) }
        return try body()
    }

    /// `0..<count` cut into runs of `size` (the last one shorter): the range of run `index`.
    @inlinable public static func range(_ index: Int, of count: Int, size: Int) -> Range<Int> {
        index * size..<min(count, (index + 1) * size)
    }
}
