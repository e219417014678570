/// Products of a frozen matrix with a few tokens, y = x W^T: bound by reading W, which is widened in registers.

import CKernels
import Checkpoints
import LinearAlgebra

/// The tokens that one or more maps read, also in the order in which 4-bit codes are read where one of them needs it.
public struct FewTokens {
    /// Fewer tokens than this are such a product; of more, decoding or packing a tile of W costs little beside multiplying.
    public static let limit = 8

    let count: Int
    let columns: Int
    /// `[count, columns]`.
    let values: UnsafePointer<Float>
    let ordered: UnsafePointer<Float>?

    /// - Parameters:
    ///   - values: `[count, columns]`
    ///   - matrices: that will be multiplied with them. Where one holds 4-bit codes, this thread's `Scratch.ordered` is in use
    ///     until the last of these products.
    public init(_ values: UnsafePointer<Float>, count: Int, columns: Int, for matrices: some Sequence<QuantizedMatrix>) {
        self.count = count
        self.columns = columns
        self.values = values
        guard matrices.contains(where: \.readsOrderedTokens) else {
            ordered = nil
            return
        }
        let stride = Self.orderedStride(columns)
        let target = Scratch.ordered.floats(count * stride)
        for token in 0..<count { tributary_gemv_order_4bit(values + token * columns, columns, target + token * stride) }
        ordered = UnsafePointer(target)
    }

    static func orderedStride(_ columns: Int) -> Int { (columns + 127) / 128 * 128 }
}

extension QuantizedMatrix {
    fileprivate var readsOrderedTokens: Bool { weights.readsOrderedTokens(columns: columns) }

    /// Rows whose products with a few tokens are one task: microseconds, and many tasks; a function of the shape alone.
    public var rowsPerFewTask: Int { max(8, (1 << 15) / columns / 8 * 8) }

    /// y = x W^T for some rows of W, on the calling thread.
    ///
    /// - Parameter y: overwritten, `[tokens, rows.count]`, `lead` floats from token to token
    public func multiply(
        _ x: FewTokens, rows: Range<Int>, into y: UnsafeMutablePointer<Float>, lead: Int, path: KernelPath = .active
    ) {
        precondition(x.columns == columns && rows.lowerBound >= 0 && rows.upperBound <= self.rows)
        if rows.isEmpty || weights.multiply(x, rows: rows, into: y, lead: lead, path: path) { return }
        withTile(rows: rows, columns: 0..<columns, path: path) { tile, stride in
            tributary_gemv_f32(path.rawValue, tile, stride, rows.count, columns, x.values, columns, x.count, y, lead)
        }
    }

    /// y = x W^T for all rows, over all threads.
    ///
    /// - Parameter y: overwritten, `[tokens, rows]`, `lead` floats from token to token
    public func multiply(_ x: FewTokens, into y: UnsafeMutablePointer<Float>, lead: Int) {
        let size = rowsPerFewTask
        Parallel.forEach(count: (rows + size - 1) / size) { task in
            let part = Parallel.range(task, of: rows, size: size)
            multiply(x, rows: part, into: y + part.lowerBound, lead: lead)
        }
    }
}
