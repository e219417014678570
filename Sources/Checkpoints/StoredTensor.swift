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

    /// Number of elements.
    public var count: Int { range.count / dtype.size }

    /// The elements, little-endian, row-major; valid while `file` lives. May be unaligned: use `loadUnaligned`.
    public var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: file.bytes[range]) }

    /// Gives the mapped pages of all elements back: they stop counting as memory in use, and are read again when touched.
    public func release() { file.release(range) }

    /// Gives the mapped pages of a range of the flattened tensor back.
    public func release(_ elements: Range<Int>) {
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
