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

    /// "nf4" or "fp4".
    public let format: String
    /// Sixteen values: the format's, or those that the file holds.
    public let table: [Float]
    public let blockSize: Int
    let packed: Packed
    public let scales: Scales

    init(format: String, table: [Float], blockSize: Int, packed: Packed, scales: Scales) {
        precondition(table.count == 16 && NF4.blockSizes.contains(blockSize))
        self.format = format
        self.table = table
        self.blockSize = blockSize
        self.packed = packed
        self.scales = scales
    }

    public init(format: String, table: [Float], blockSize: Int, packed: [UInt8], scales: Scales) {
        self.init(format: format, table: table, blockSize: blockSize, packed: .owned(packed), scales: scales)
    }

    public var packedBytes: [UInt8] { packed.withBytes { Array(UnsafeBufferPointer(start: $0, count: packed.count)) } }

}

extension FourBitCodes: PackedWeights {
    var formatName: String { format }
    /// Bytes of codes, scales and tables.
    public var byteCount: Int { packed.count + scales.byteCount + 4 * table.count }

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

    func pack(
        columns: Int, n: Range<Int>, over k: Range<Int>, transposed: Bool, into target: UnsafeMutablePointer<UInt32>,
        path: KernelPath
    ) -> Bool {
        // Where rows are no whole runs of 32 codes, a byte or a block may belong to two of them.
        let part = transposed ? n : k
        guard columns % 32 == 0, part.lowerBound % 32 == 0, part.upperBound % 32 == 0 else { return false }
        withMatrix(columns: columns) { matrix in
            tributary_bf16_pack_4bit(
                path.rawValue, matrix, transposed ? 1 : 0, n.lowerBound, n.upperBound, k.lowerBound, k.upperBound, target)
        }
        return true
    }

    /// The codes and scales as the packing reads them; the pointers are valid inside `body`.
    private func withMatrix(columns: Int, _ body: (UnsafePointer<tributary_4bit_matrix>) -> Void) {
        packed.withBytes { bytes in
            table.withUnsafeBufferPointer { table in
                var matrix = tributary_4bit_matrix()
                matrix.packed = bytes
                matrix.table = table.baseAddress
                matrix.block_shift = Int32(blockSize.trailingZeroBitCount)
                matrix.columns = columns
                matrix.nested_block = 1
                switch scales {
                case .plain(let values):
                    values.withUnsafeBufferPointer {
                        matrix.scales = $0.baseAddress
                        body(&matrix)
                    }
                case .nested(let nested):
                    nested.codes.withUnsafeBufferPointer { codes in
                        nested.map.withUnsafeBufferPointer { map in
                            nested.scales.withUnsafeBufferPointer { scales in
                                matrix.codes = codes.baseAddress
                                matrix.map = map.baseAddress
                                matrix.scales = scales.baseAddress
                                matrix.offset = nested.offset
                                matrix.nested_block = nested.blockSize
                                body(&matrix)
                            }
                        }
                    }
                }
            }
        }
    }
}
