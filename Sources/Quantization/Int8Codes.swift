/// INT8 in runs of 64: q = round-half-even(127 w / absmax), scale = absmax / 127; 8.5 bits a value.
///
/// Our own format: linear codes err less on weights than bitsandbytes' dynamic map, and runs of 64 far less than its
/// one scale for a row.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

extension WeightFormat {
    public static let int8 = WeightFormat(
        name: "int8", bitsPerWeight: 8 + 32.0 / Double(Int8Codes.run), blockSize: Int8Codes.run,
        errorBound: .init(ofBlock: 0.5 / 127),
        encode: { (tensor, rows, columns) throws(Failure) in try Int8Codes(tensor, rows: rows, columns: columns) })
}

public struct Int8Codes: Sendable {
    /// Columns that share a scale; the last run of a row may be shorter.
    public static let run = 64

    /// `[rows, columns]`.
    public let codes: [Int8]
    /// `[rows, ceil(columns / 64)]`.
    public let scales: [Float]

    public init(codes: [Int8], scales: [Float]) {
        self.codes = codes
        self.scales = scales
    }

    /// - Parameter read: writes the values of a range of rows; called from several threads
    /// - Throws: `Failure` if a value is not finite
    init(
        name: String, rows: Int, columns: Int, read: (Range<Int>, UnsafeMutablePointer<Float>) -> Void
    ) throws(Failure) {
        let runs = (columns + Self.run - 1) / Self.run
        var codes = [Int8](repeating: 0, count: rows * columns)
        var scales = [Float](repeating: 0, count: rows * runs)
        let part = max(1, (1 << 18) / max(1, columns))
        let path = KernelPath.active.rawValue
        codes.withUnsafeMutableBufferPointer { codes in
            scales.withUnsafeMutableBufferPointer { scales in
                nonisolated(unsafe) let codes = codes
                nonisolated(unsafe) let scales = scales
                Parallel.forEach(count: (rows + part - 1) / part) { index in
                    let range = Parallel.range(index, of: rows, size: part)
                    let values = Scratch.first.floats(range.count * columns)
                    read(range, values)
                    for row in range {
                        tributary_encode_int8(
                            path, values + (row - range.lowerBound) * columns, columns, codes.baseAddress! + row * columns,
                            scales.baseAddress! + row * runs)
                    }
                }
            }
        }
        if let index = scales.firstIndex(where: { !$0.isFinite }) {
            throw Failure(
                .badData,
                "\(name) holds a value that is not finite in row \(index / runs); the checkpoint is damaged, fetch it again")
        }
        self.init(codes: codes, scales: scales)
    }

    /// Codes of a row-major matrix in memory.
    public init(_ values: [Float], rows: Int, columns: Int) throws(Failure) {
        precondition(values.count == rows * columns)
        self = try values.withUnsafeBufferPointer { (source) throws(Failure) -> Int8Codes in
            nonisolated(unsafe) let source = source
            return try Int8Codes(name: "the matrix", rows: rows, columns: columns) { range, target in
                target.update(from: source.baseAddress! + range.lowerBound * columns, count: range.count * columns)
            }
        }
    }

    /// Codes of a stored matrix; its mapped pages are given back as they are done.
    public init(_ tensor: StoredTensor, rows: Int, columns: Int) throws(Failure) {
        let source = try StoredWeights(tensor, rows: rows, columns: columns)
        self = try Int8Codes(name: "tensor \(tensor.name)", rows: rows, columns: columns) { range, target in
            source.read(range.lowerBound * columns..<range.upperBound * columns, into: target)
        }
    }
}

extension Int8Codes: PackedWeights {
    var formatName: String { "int8" }
    var byteCount: Int { codes.count + 4 * scales.count }

    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath
    ) {
        tributary_decode_int8(
            path.rawValue, codes, scales, columns, rows.lowerBound, rows.upperBound, part.lowerBound, part.upperBound, target,
            stride)
    }
}
