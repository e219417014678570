/// Block records that wait for their backward pass, rounded to bfloat16: half of the memory.

import CKernels
import LinearAlgebra

/// One block's record: norms' and softmaxes' factors as floats, everything else rounded.
final class SavedRecord {
    private let exact = FloatBuffer()
    private let rounded = HalfRows()

    /// Floats of one task.
    private static let part = 1 << 14

    /// Bytes of a record of these sizes.
    static func byteCount(_ sizes: RecordSizes) -> Int { 4 * sizes.exact + 2 * sizes.rounded }

    func save(_ record: ActivationRecord) {
        exact.reserve(record.exactCount).update(from: record.pointer, count: record.exactCount)
        let (count, source) = (record.roundedCount, record.pointer + record.exactCount)
        rounded.reserve(rows: 1, columns: count)
        let (target, path) = (rounded.pointer, KernelPath.active.rawValue)
        Parallel.forEach(count: (count + Self.part - 1) / Self.part) { task in
            let range = Parallel.range(task, of: count, size: Self.part)
            tributary_bf16_round(
                path, source + range.lowerBound, range.count, 1, range.count, 1, target + range.lowerBound, range.count)
        }
    }

    func restore(_ record: ActivationRecord) {
        record.pointer.update(from: exact.pointer, count: record.exactCount)
        let (count, target) = (record.roundedCount, record.pointer + record.exactCount)
        let (source, path) = (rounded.pointer, KernelPath.active.rawValue)
        Parallel.forEach(count: (count + Self.part - 1) / Self.part) { task in
            let range = Parallel.range(task, of: count, size: Self.part)
            tributary_decode_bf16(
                path, source + range.lowerBound, range.count, 0, 1, 0, range.count, target + range.lowerBound, range.count)
        }
    }
}
