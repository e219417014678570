/// One tensor of a checkpoint as it lies in its file.

import Primitives

public struct StoredTensor: Sendable {
    public let name: String
    public let dtype: TensorType
    public let shape: [Int]
    /// Where the bytes lie in the file.
    public let range: Range<Int>
    /// Keeps the mapping alive.
    public let file: MappedFile
    /// Rows of one head, where the rows of its two halves alternate in the file (`RowRun`); nil: rows lie in order.
    public let interleavedHeadSize: Int?

    init(name: String, dtype: TensorType, shape: [Int], range: Range<Int>, file: MappedFile, interleavedHeadSize: Int? = nil) {
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.range = range
        self.file = file
        self.interleavedHeadSize = interleavedHeadSize
    }

    /// Number of elements.
    public var count: Int { range.count / dtype.size * dtype.blockElements }

    /// Bytes from row to row of a matrix; of a vector, from element to element.
    public var rowBytes: Int { shape.first.map { range.count / max($0, 1) } ?? range.count }

    /// The elements as they lie in the file, little-endian, row-major; valid while `file` lives. May be unaligned: use
    /// `loadUnaligned`. Rows are in the file's order: see `runs`.
    public var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: file.bytes[range]) }

    /// Whether the elements are floats on a 4-byte boundary with their rows in order, which can be read in place.
    public var isPlainFloats: Bool {
        guard dtype == .f32, interleavedHeadSize == nil, let base = bytes.baseAddress else { return false }
        return UInt(bitPattern: base) % 4 == 0
    }

    /// Gives the mapped pages of all elements back: they stop counting as memory in use, and are read again when touched.
    public func release() { file.release(range) }

    /// Gives the mapped pages of a range of the flattened tensor back, where the range lies in one place.
    public func release(_ elements: Range<Int>) {
        guard interleavedHeadSize == nil, !dtype.isBlocks else { return }
        file.release(range.lowerBound + elements.lowerBound * dtype.size..<range.lowerBound + elements.upperBound * dtype.size)
    }

    /// The elements as floats.
    ///
    /// - Throws: `Failure` if they are integers.
    public func floats() throws(Failure) -> [Float] { try floats(0..<count) }

    /// The elements of a range of the flattened tensor as floats.
    public func floats(_ elements: Range<Int>) throws(Failure) -> [Float] {
        guard dtype.isFloat else {
            throw Failure(
                .badData, "\(file.path): tensor \(name) is stored as \(dtype.rawValue), where numbers with a fraction are needed")
        }
        precondition(elements.lowerBound >= 0 && elements.upperBound <= count, "elements \(elements) of a tensor of \(count)")
        if interleavedHeadSize != nil {
            let row = count / shape[0]
            var values: [Float] = []
            values.reserveCapacity(elements.count)
            var element = elements.lowerBound
            while element < elements.upperBound {
                let end = min(elements.upperBound, (element / row + 1) * row)
                let stored = storedRow(element / row) * row + element % row
                values += plainFloats(stored..<stored + end - element)
                element = end
            }
            return values
        }
        return plainFloats(elements)
    }

    /// Elements in the file's order.
    private func plainFloats(_ elements: Range<Int>) -> [Float] {
        let source = bytes
        let type = dtype
        return [Float](unsafeUninitializedCapacity: elements.count) { target, initialized in
            switch type {
            case .f32:
                if !elements.isEmpty {
                    UnsafeMutableRawBufferPointer(target).copyMemory(
                        from: UnsafeRawBufferPointer(rebasing: source[elements.lowerBound * 4..<elements.upperBound * 4]))
                }
            case .bf16:
                for (index, element) in elements.enumerated() {
                    target.initializeElement(
                        at: index, to: bfloat16Value(source.loadUnaligned(fromByteOffset: element * 2, as: UInt16.self)))
                }
            case .f16:
                for (index, element) in elements.enumerated() {
                    target.initializeElement(
                        at: index,
                        to: Float(Float16(bitPattern: source.loadUnaligned(fromByteOffset: element * 2, as: UInt16.self))))
                }
            default:
                for (index, element) in elements.enumerated() {
                    target.initializeElement(
                        at: index, to: Float(source.loadUnaligned(fromByteOffset: element * 8, as: Double.self)))
                }
            }
            initialized = elements.count
        }
    }

    /// The elements as doubles.
    public func doubles() throws(Failure) -> [Double] {
        guard dtype == .f64 else { return try floats().map(Double.init) }
        let source = bytes
        return (0..<count).map { source.loadUnaligned(fromByteOffset: $0 * 8, as: Double.self) }
    }

    /// The elements of an integer tensor.
    public func integers() throws(Failure) -> [Int] {
        let source = bytes
        switch dtype {
        case .i64: return (0..<count).map { Int(source.loadUnaligned(fromByteOffset: $0 * 8, as: Int64.self)) }
        case .i32: return (0..<count).map { Int(source.loadUnaligned(fromByteOffset: $0 * 4, as: Int32.self)) }
        case .i16: return (0..<count).map { Int(source.loadUnaligned(fromByteOffset: $0 * 2, as: Int16.self)) }
        case .i8: return source.map { Int(Int8(bitPattern: $0)) }
        case .u8, .bool: return source.map { Int($0) }
        default: throw Failure(.badData, "\(file.path): tensor \(name) is stored as \(dtype.rawValue), where integers are needed")
        }
    }
}

/// Rows that follow one another in a tensor and lie at equal distances in its file.
///
/// GGUF files of the architecture llama hold the rows of each head's query and key so that the two of a rotated pair are
/// neighbours (row 2 i + s of the file is row s headSize / 2 + i of the head), where Hugging Face's lie half a head apart.
public struct RowRun: Equatable, Sendable {
    /// Of the tensor.
    public let rows: Range<Int>
    /// Row of the file where the run begins.
    public let stored: Int
    /// Rows of the file from one to the next.
    public let step: Int
}

/// Where a row of a query or key lies among the rows of heads that are interleaved as `RowRun` says.
public func storedRow(_ row: Int, interleavedHeadSize size: Int) -> Int {
    let within = row % size
    return row - within + 2 * (within % (size / 2)) + within / (size / 2)
}

extension StoredTensor {
    /// Where a row lies in the file.
    public func storedRow(_ row: Int) -> Int {
        interleavedHeadSize.map { Checkpoints.storedRow(row, interleavedHeadSize: $0) } ?? row
    }

    /// A range of rows as runs, in order.
    public func runs(_ rows: Range<Int>) -> [RowRun] {
        guard let size = interleavedHeadSize else { return [RowRun(rows: rows, stored: rows.lowerBound, step: 1)] }
        var runs: [RowRun] = []
        var row = rows.lowerBound
        while row < rows.upperBound {
            let end = min(rows.upperBound, (row / (size / 2) + 1) * (size / 2))
            runs.append(RowRun(rows: row..<end, stored: storedRow(row), step: 2))
            row = end
        }
        return runs
    }

    /// The tensor's bytes in the order of its rows, a part at a time: ranges of the file.
    public func forEachPart<Problem: Error>(
        upTo limit: Int = 8 << 20, _ body: (Range<Int>) throws(Problem) -> Void
    ) throws(Problem) {
        guard interleavedHeadSize != nil else {
            var start = range.lowerBound
            while start < range.upperBound {
                let end = min(start + limit, range.upperBound)
                try body(start..<end)
                start = end
            }
            return
        }
        for row in 0..<shape[0] {
            let start = range.lowerBound + storedRow(row) * rowBytes
            try body(start..<start + rowBytes)
        }
    }
}
