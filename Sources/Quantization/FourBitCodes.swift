/// A matrix in 4-bit codes: sixteen values, a scale for each block of the flattened matrix.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

public struct FourBitCodes: Sendable {
    /// Two codes a byte, the first in the high nibble.
    enum Packed: Sendable {
        case owned([UInt8])
        /// In a memory-mapped file.
        case mapped(StoredTensor)

        func withBytes<Result>(_ body: (UnsafePointer<UInt8>) -> Result) -> Result {
            switch self {
            case .owned(let bytes): bytes.withUnsafeBufferPointer { body($0.baseAddress!) }
            case .mapped(let tensor): body(tensor.bytes.baseAddress!.assumingMemoryBound(to: UInt8.self))
            }
        }
        var count: Int {
            switch self {
            case .owned(let bytes): bytes.count
            case .mapped(let tensor): tensor.range.count
            }
        }
    }

    public enum Scales: Sendable {
        case plain([Float])
        case nested(NestedScales)

        public var count: Int {
            switch self {
            case .plain(let values): values.count
            case .nested(let nested): nested.codes.count
            }
        }
        var byteCount: Int {
            switch self {
            case .plain(let values): 4 * values.count
            case .nested(let nested): nested.codes.count + 4 * nested.scales.count + 4 * nested.map.count
            }
        }
    }

    /// Sixteen values: NF4's, or those that the file holds.
    public let table: [Float]
    public let blockSize: Int
    let packed: Packed
    public let scales: Scales

    init(table: [Float], blockSize: Int, packed: Packed, scales: Scales) {
        precondition(table.count == 16 && NF4.blockSizes.contains(blockSize))
        self.table = table
        self.blockSize = blockSize
        self.packed = packed
        self.scales = scales
    }

    public init(table: [Float], blockSize: Int, packed: [UInt8], scales: Scales) {
        self.init(table: table, blockSize: blockSize, packed: .owned(packed), scales: scales)
    }

    public var packedBytes: [UInt8] { packed.withBytes { Array(UnsafeBufferPointer(start: $0, count: packed.count)) } }

    /// Bytes of codes, scales and tables.
    public var byteCount: Int { packed.count + scales.byteCount + 4 * table.count }

    /// Values of a tile of the `columns` wide matrix; see `QuantizedMatrix.decode`.
    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath
    ) {
        let first = (rows.lowerBound * columns + part.lowerBound) / blockSize
        let last = ((rows.upperBound - 1) * columns + part.upperBound - 1) / blockSize
        precondition(last < scales.count)
        func decode(_ values: UnsafePointer<Float>, from firstBlock: Int) {
            packed.withBytes { bytes in
                tributary_decode_4bit(
                    path.rawValue, bytes, values, firstBlock, Int32(blockSize.trailingZeroBitCount), table, columns,
                    rows.lowerBound, rows.upperBound, part.lowerBound, part.upperBound, target, stride)
            }
        }
        switch scales {
        case .plain(let values): decode(values, from: 0)
        case .nested(let nested):
            // A tile's scales are one in 32 or fewer of its values where it is whole rows; of a narrow tile, those
            // between its rows are decoded too.
            let values = Scratch.scales.floats(last - first + 1)
            nested.decode(first..<last + 1, into: values)
            decode(values, from: first)
        }
    }
}
