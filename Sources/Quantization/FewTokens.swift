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
    fileprivate var readsOrderedTokens: Bool {
        // Where rows are no whole runs of 32 codes, a word of eight may belong to two of them.
        if case .fourBit = form { columns % 32 == 0 } else { false }
    }

    /// Rows whose products with a few tokens are one task: microseconds, and many tasks; a function of the shape alone.
    public var rowsPerFewTask: Int { max(8, (1 << 15) / columns / 8 * 8) }

    /// y = x W^T for some rows of W, on the calling thread.
    ///
    /// - Parameter y: overwritten, `[tokens, rows.count]`, `lead` floats from token to token
    public func multiply(
        _ x: FewTokens, rows: Range<Int>, into y: UnsafeMutablePointer<Float>, lead: Int, path: KernelPath = .active
    ) {
        precondition(x.columns == columns && rows.lowerBound >= 0 && rows.upperBound <= self.rows)
        let (path, first) = (path.rawValue, rows.lowerBound * columns)
        switch form {
        case .dense(let values):
            values.withUnsafeBufferPointer {
                tributary_gemv_f32(
                    path, $0.baseAddress! + first, columns, rows.count, columns, x.values, columns, x.count, y, lead)
            }
        case .stored(let source):
            let start = source.tensor.bytes.baseAddress! + first * source.tensor.dtype.size
            let product =
                switch source.tensor.dtype {
                case .bf16: tributary_gemv_bf16
                case .f16: tributary_gemv_f16
                default: tributary_gemv_f32
                }
            product(path, start, columns, rows.count, columns, x.values, columns, x.count, y, lead)
        case .int8(let codes):
            let runs = (columns + Int8Codes.run - 1) / Int8Codes.run
            codes.codes.withUnsafeBufferPointer { values in
                codes.scales.withUnsafeBufferPointer { scales in
                    tributary_gemv_int8(
                        path, values.baseAddress! + first, scales.baseAddress! + rows.lowerBound * runs, rows.count, columns,
                        x.values, columns, x.count, y, lead)
                }
            }
        case .fourBit(let codes, _):
            guard let ordered = x.ordered, readsOrderedTokens else {
                withTile(rows: rows, columns: 0..<columns) { tile, stride in
                    tributary_gemv_f32(path, tile, stride, rows.count, columns, x.values, columns, x.count, y, lead)
                }
                return
            }
            codes.withScales(columns: columns, rows: rows, spare: 3) { bytes, scales, firstBlock in
                tributary_gemv_4bit(
                    path, bytes, scales, firstBlock, Int32(codes.blockSize.trailingZeroBitCount), codes.table, columns,
                    rows.lowerBound, rows.upperBound, ordered, FewTokens.orderedStride(columns), x.count, y, lead)
            }
        }
    }

    /// y = x W^T for all rows, over all threads.
    ///
    /// - Parameter y: overwritten, `[tokens, rows]`
    public func multiply(_ x: FewTokens, into y: UnsafeMutablePointer<Float>) {
        let size = rowsPerFewTask
        Parallel.forEach(count: (rows + size - 1) / size) { task in
            let part = Parallel.range(task, of: rows, size: size)
            multiply(x, rows: part, into: y + part.lowerBound, lead: rows)
        }
    }
}

extension FourBitCodes {
    /// The codes of the whole matrix and the scales of some rows, from block `firstBlock` on, `spare` floats behind them.
    fileprivate func withScales(
        columns: Int, rows: Range<Int>, spare: Int,
        _ body: (_ bytes: UnsafePointer<UInt8>, _ scales: UnsafePointer<Float>, _ firstBlock: Int) -> Void
    ) {
        guard !rows.isEmpty else { return }
        let blocks = rows.lowerBound * columns / blockSize..<(rows.upperBound * columns + blockSize - 1) / blockSize
        precondition(blocks.upperBound <= scales.count)
        let target = Scratch.scales.floats(blocks.count + spare)
        (target + blocks.count).update(repeating: 0, count: spare)
        switch scales {
        case .plain(let values):
            values.withUnsafeBufferPointer { target.update(from: $0.baseAddress! + blocks.lowerBound, count: blocks.count) }
        case .nested(let nested): nested.decode(blocks, into: target)
        }
        packed.withBytes { body($0, target, blocks.lowerBound) }
    }
}
