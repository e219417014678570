/// Memory for numbers: aligned to 64 bytes, taken once and used again.

import CKernels
import Glibc
import Synchronization

/// A block of floats on a 64-byte boundary that only ever grows, so that a training loop allocates in its first step.
public final class FloatBuffer {
    public private(set) var pointer: UnsafeMutablePointer<Float>
    public private(set) var capacity: Int

    public init(capacity: Int = 0) {
        self.capacity = max(16, capacity)
        pointer = Self.allocate(self.capacity)
    }

    deinit { UnsafeMutableRawPointer(pointer).deallocate() }

    /// Makes room for `count` floats. Growing loses the content and moves the block.
    @discardableResult public func reserve(_ count: Int) -> UnsafeMutablePointer<Float> {
        if count > capacity {
            UnsafeMutableRawPointer(pointer).deallocate()
            capacity = count
            pointer = Self.allocate(count)
        }
        return pointer
    }

    /// Blocks of this size and more lie on pages of it where the system has them: rows of a matrix lie pages apart, and a
    /// product would spend its time on looking them up.
    private static let largePage = 2 << 20

    private static let taken = Atomic<Int>(0)
    /// Blocks that this process has taken so far, to see that a loop takes none.
    public static var blocksTaken: Int { taken.load(ordering: .relaxed) + tributary_scratch_growths() }

    private static func allocate(_ count: Int) -> UnsafeMutablePointer<Float> {
        taken.add(1, ordering: .relaxed)
        let bytes = count * MemoryLayout<Float>.stride
        let isLarge = bytes >= largePage
        let memory = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: isLarge ? largePage : 64)
        // Only advice: without it the memory is the same.
        if isLarge { madvise(memory, bytes / largePage * largePage, MADV_HUGEPAGE) }
        return memory.bindMemory(to: Float.self, capacity: count)
    }
}

/// Memory of the calling thread, one block a purpose, for the inside of a task.
public enum Scratch: Int32, Sendable {
    /// A decoded part of a weight.
    case weights
    /// Scores of an attention tile, logits of a chunk.
    case scores
    /// Anything that is not in use together with the two above.
    case scales, first, second, third, fourth, fifth, sixth
    /// Slabs of a bfloat16 product's right operand, and where they lie.
    case packed, segments

    /// At least `count` floats on a 64-byte boundary, valid until the next call for this purpose on this thread.
    public func floats(_ count: Int) -> UnsafeMutablePointer<Float> {
        memory(of: Float.self, count: count)
    }

    /// The same for `count` values of another trivial type.
    public func memory<Value: BitwiseCopyable>(of type: Value.Type, count: Int) -> UnsafeMutablePointer<Value> {
        tributary_scratch(rawValue, count * MemoryLayout<Value>.stride).assumingMemoryBound(to: type)
    }
}

/// The peak resident set of this process in GiB, mapped pages included.
public func peakGiB() -> Double {
    var usage = rusage()
    getrusage(Int32(RUSAGE_SELF.rawValue), &usage)
    return Double(usage.ru_maxrss) / 1_048_576
}
