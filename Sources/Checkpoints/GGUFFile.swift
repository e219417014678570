/// A GGUF file, memory-mapped: metadata and tensors, every count, length, type and offset checked before use.
///
/// Layout (ggml, docs/gguf.md), little-endian: "GGUF", u32 version, u64 tensors, u64 metadata entries; each entry a key, a
/// u32 type and a value; each tensor a name, its dimensions (the row length first), a u32 type and an offset; then, at a
/// multiple of `general.alignment`, the tensors' bytes. Text is a u64 length and UTF-8.

import Primitives

/// How a metadata value is encoded.
public enum GGUFValueType: UInt32, Sendable {
    case uint8 = 0, int8, uint16, int16, uint32, int32, float32, bool, string, array, uint64, int64, float64

    /// Bytes of one value; nil for text and arrays.
    var size: Int? {
        switch self {
        case .uint8, .int8, .bool: 1
        case .uint16, .int16: 2
        case .uint32, .int32, .float32: 4
        case .uint64, .int64, .float64: 8
        case .string, .array: nil
        }
    }
}

/// One metadata value.
public enum GGUFValue: Sendable {
    case integer(Int)
    case float(Float)
    case double(Double)
    case boolean(Bool)
    case text(String)
    case array(GGUFArray)
}

/// A metadata array, left in the file: its lengths have been checked, its values are read when they are asked for.
public struct GGUFArray: Sendable {
    public let key: String
    public let type: GGUFValueType
    public let count: Int
    let start: Int
    let file: MappedFile

    private func wrong(_ what: String) -> Failure {
        Failure(.badData, "\(file.path): \(key) \(what); fetch or convert the file again")
    }

    /// - Throws: `Failure` unless it is an array of text in UTF-8.
    public func texts() throws(Failure) -> [String] {
        guard type == .string else { throw wrong("is no array of texts") }
        var reader = GGUFReader(file, from: start)
        var texts: [String] = []
        texts.reserveCapacity(count)
        for index in 0..<count {
            guard let text = String(validating: try reader.textBytes(), as: UTF8.self) else {
                throw wrong("holds bytes that are not UTF-8 at position \(index)")
            }
            texts.append(text)
        }
        return texts
    }

    /// - Throws: `Failure` unless it is an array of integers.
    public func integers() throws(Failure) -> [Int] {
        var reader = GGUFReader(file, from: start)
        var values: [Int] = []
        values.reserveCapacity(count)
        for _ in 0..<count {
            guard case .integer(let value) = try reader.value(type, key: key) else { throw wrong("is no array of integers") }
            values.append(value)
        }
        return values
    }

    /// - Throws: `Failure` unless it is an array of numbers.
    public func floats() throws(Failure) -> [Float] {
        var reader = GGUFReader(file, from: start)
        var values: [Float] = []
        values.reserveCapacity(count)
        for _ in 0..<count {
            switch try reader.value(type, key: key) {
            case .float(let value): values.append(value)
            case .double(let value): values.append(Float(value))
            case .integer(let value): values.append(Float(value))
            default: throw wrong("is no array of numbers")
            }
        }
        return values
    }
}

public final class GGUFFile: Sendable {
    public let path: String
    public let version: Int
    public let metadata: [String: GGUFValue]
    /// By their names in the file; shapes are as everywhere here, the row length last.
    public let tensors: [String: StoredTensor]
    public let file: MappedFile

    /// The file's first four bytes.
    public static let magic = Array("GGUF".utf8)

    /// Whether the file at `path` is there and begins as a GGUF file does.
    public static func isGGUF(_ path: String) -> Bool {
        guard let file = try? MappedFile(path: path), file.size >= magic.count else { return false }
        return file.bytes.prefix(magic.count).elementsEqual(magic)
    }

    /// - Throws: `Failure(.badData)` that names the file, and the key or tensor where there is one.
    public init(path: String) throws(Failure) {
        let file = try MappedFile(path: path)
        var reader = GGUFReader(file, from: 0)
        guard file.size >= 4, file.bytes.prefix(4).elementsEqual(Self.magic) else {
            throw reader.broken("it does not begin with GGUF")
        }
        reader.position = 4
        let version: UInt32 = try reader.read()
        guard version == 2 || version == 3 else {
            let isBig = version.byteSwapped == 3 || version.byteSwapped == 2
            throw Failure(
                .badData,
                isBig
                    ? "\(path) is a big-endian GGUF file, which is not supported: convert the model for little-endian machines"
                    : "\(path) has GGUF version \(version); 2 and 3 are supported: convert the model again")
        }
        let tensorCount = try reader.count("tensors", least: 8 + 4 + 8 + 4 + 8)
        let entryCount = try reader.count("metadata entries", least: 8 + 4 + 1)

        var metadata: [String: GGUFValue] = [:]
        for _ in 0..<entryCount {
            let key = try reader.text("a key")
            guard let type = GGUFValueType(rawValue: try reader.read()) else {
                throw reader.broken("the type of \(key) is unknown")
            }
            let value = try reader.value(type, key: key)
            guard metadata.updateValue(value, forKey: key) == nil else { throw reader.broken("\(key) stands in it twice") }
        }
        var alignment = 32
        if let value = metadata["general.alignment"] {
            guard case .integer(let stated) = value, 1...1 << 20 ~= stated, stated & (stated - 1) == 0 else {
                throw reader.broken("general.alignment is no power of two")
            }
            alignment = stated
        }

        var places: [(name: String, type: TensorType, shape: [Int], offset: Int, size: Int)] = []
        for _ in 0..<tensorCount {
            let name = try reader.text("a tensor's name")
            let dimensions: UInt32 = try reader.read()
            guard 1...4 ~= dimensions else { throw reader.broken("tensor \(name) has \(dimensions) dimensions") }
            var shape: [Int] = []
            var count = 1
            for _ in 0..<dimensions {
                let size: UInt64 = try reader.read()
                guard 1...UInt64(Int32.max) ~= size, case let (product, false) = count.multipliedReportingOverflow(by: Int(size))
                else { throw reader.broken("tensor \(name) has the dimension \(size)") }
                count = product
                shape.insert(Int(size), at: 0)
            }
            let typeNumber: UInt32 = try reader.read()
            guard let type = Self.types[typeNumber] else {
                throw Failure(
                    .badData,
                    "\(path): tensor \(name) is stored as \(Self.otherTypes[typeNumber] ?? "type \(typeNumber)"), which is not supported; \(Self.typeNames) are"
                )
            }
            guard shape.last! % type.blockElements == 0 else {
                throw reader.broken("the rows of tensor \(name), \(shape.last!) long, are no whole blocks of \(type.rawValue)")
            }
            let (bytes, overflow) = (count / type.blockElements).multipliedReportingOverflow(by: type.size)
            guard !overflow else { throw reader.broken("tensor \(name) is too large") }
            let offset: UInt64 = try reader.read()
            guard offset <= UInt64(file.size) else { throw reader.broken("tensor \(name) lies behind its end") }
            guard Int(offset) % alignment == 0 else {
                throw reader.broken("tensor \(name) does not lie at a multiple of \(alignment)")
            }
            places.append((name, type, shape, Int(offset), bytes))
        }
        let dataStart = (reader.position + alignment - 1) / alignment * alignment
        var tensors: [String: StoredTensor] = [:]
        for place in places {
            guard dataStart <= file.size, place.size <= file.size - dataStart, place.offset <= file.size - dataStart - place.size
            else {
                throw reader.broken("tensor \(place.name) ends behind its last byte: the file is truncated")
            }
            let start = dataStart + place.offset
            let tensor = StoredTensor(
                name: place.name, dtype: place.type, shape: place.shape, range: start..<start + place.size, file: file)
            guard tensors.updateValue(tensor, forKey: place.name) == nil else {
                throw reader.broken("tensor \(place.name) stands in it twice")
            }
        }
        var end = dataStart
        for place in places.sorted(by: { ($0.offset, $0.size) < ($1.offset, $1.size) }) {
            guard dataStart + place.offset >= end else {
                throw reader.broken("tensor \(place.name) overlaps the one before it")
            }
            end = dataStart + place.offset + place.size
        }
        self.path = path
        self.version = Int(version)
        self.metadata = metadata
        self.tensors = tensors
        self.file = file
    }

    /// Tensor types by their numbers.
    private static let types = Dictionary(
        uniqueKeysWithValues: TensorType.allCases.compactMap { type in type.numberInGGUF.map { ($0, type) } })
    private static let typeNames = TensorType.allCases.filter { $0.numberInGGUF != nil }.map(\.rawValue).joined(separator: ", ")
    private static let otherTypes: [UInt32: String] = [
        9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
        21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
        35: "TQ2_0", 39: "MXFP4",
    ]
}

/// Reads a GGUF file's header in order; nothing is taken before it is known to lie in the file.
struct GGUFReader {
    private let file: MappedFile
    var position: Int

    init(_ file: MappedFile, from position: Int) {
        self.file = file
        self.position = position
    }

    private var remaining: Int { file.size - position }

    func broken(_ what: String) -> Failure {
        Failure(.badData, "\(file.path) is not a complete GGUF file: \(what); fetch or convert it again")
    }

    mutating func read<T: FixedWidthInteger>(_ type: T.Type = T.self) throws(Failure) -> T {
        let size = MemoryLayout<T>.size
        guard size <= remaining else { throw broken("it ends within its header") }
        defer { position += size }
        return T(littleEndian: file.bytes.loadUnaligned(fromByteOffset: position, as: T.self))
    }

    /// A u64 number of things of which each takes at least `least` bytes.
    mutating func count(_ what: String, least: Int) throws(Failure) -> Int {
        let count: UInt64 = try read()
        guard count <= UInt64(remaining / least) else {
            throw broken("it says that it has \(count) \(what), more than its \(file.size) bytes can hold")
        }
        return Int(count)
    }

    mutating func textBytes() throws(Failure) -> UnsafeRawBufferPointer {
        let length: UInt64 = try read()
        guard length <= UInt64(remaining) else { throw broken("a text is \(length) bytes long, but only \(remaining) are left") }
        defer { position += Int(length) }
        return UnsafeRawBufferPointer(rebasing: file.bytes[position..<position + Int(length)])
    }

    mutating func text(_ what: String) throws(Failure) -> String {
        guard let text = String(validating: try textBytes(), as: UTF8.self), !text.utf8.contains(0) else {
            throw broken("\(what) is not UTF-8")
        }
        return text
    }

    mutating func value(_ type: GGUFValueType, key: String) throws(Failure) -> GGUFValue {
        switch type {
        case .uint8: return .integer(Int(try read(UInt8.self)))
        case .int8: return .integer(Int(try read(Int8.self)))
        case .uint16: return .integer(Int(try read(UInt16.self)))
        case .int16: return .integer(Int(try read(Int16.self)))
        case .uint32: return .integer(Int(try read(UInt32.self)))
        case .int32: return .integer(Int(try read(Int32.self)))
        case .int64: return .integer(Int(try read(Int64.self)))
        case .uint64:
            let value: UInt64 = try read()
            return Int(exactly: value).map { .integer($0) } ?? .double(Double(value))
        case .float32: return .float(Float(bitPattern: try read()))
        case .float64: return .double(Double(bitPattern: try read()))
        case .bool:
            let byte: UInt8 = try read()
            guard byte <= 1 else { throw broken("\(key) is \(byte), neither true nor false") }
            return .boolean(byte == 1)
        case .string: return .text(try text(key))
        case .array:
            guard let element = GGUFValueType(rawValue: try read()), element != .array else {
                throw broken("the array \(key) is of a type that is unknown")
            }
            let count = try count("elements of \(key)", least: element.size ?? 8)
            let array = GGUFArray(key: key, type: element, count: count, start: position, file: file)
            if let size = element.size {
                position += count * size
            } else {
                for _ in 0..<count { _ = try textBytes() }
            }
            return .array(array)
        }
    }
}
