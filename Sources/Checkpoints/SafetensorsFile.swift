/// A safetensors file, memory-mapped: every length, type, shape and offset of its header is checked before use.
///
/// Layout: u64 little-endian header length, the header as JSON, then the tensors' bytes without holes
/// (https://huggingface.co/docs/safetensors, "Format").

import Primitives

public final class SafetensorsFile: Sendable {
    public let path: String
    public let tensors: [String: StoredTensor]
    /// Sorted bytewise.
    public let names: [String]
    public let metadata: [String: String]
    public let file: MappedFile

    /// The format's own limit.
    public static let headerLimit = 100_000_000

    /// - Throws: `Failure(.badData)` that names the file, and the tensor where there is one.
    public init(path: String) throws(Failure) {
        let file = try MappedFile(path: path)
        func broken(_ what: String) -> Failure {
            Failure(.badData, "\(path) is not a complete safetensors file: \(what); fetch or write the file again")
        }
        guard file.size >= 8 else { throw broken("it has \(file.size) bytes, fewer than the 8 of its first field") }
        let stated = UInt64(littleEndian: file.bytes.loadUnaligned(as: UInt64.self))
        guard stated <= UInt64(Self.headerLimit) else {
            throw broken("its first field says that the header has \(stated) bytes, more than the \(Self.headerLimit) allowed")
        }
        let headerLength = Int(stated)
        guard headerLength <= file.size - 8 else {
            throw broken("the header has \(headerLength) bytes, but the file only \(file.size)")
        }
        let header: JSONValue
        do {
            header = try JSONValue(parsing: Array(file.bytes[8..<8 + headerLength]))
        } catch {
            throw broken("its header is not valid JSON: \(error.message) at byte \(error.position)")
        }
        guard let members = header.members else { throw broken("its header is not a JSON object") }
        let dataStart = 8 + headerLength
        let dataLength = file.size - dataStart

        var tensors: [String: StoredTensor] = [:]
        var metadata: [String: String] = [:]
        for member in members {
            if member.key == "__metadata__" {
                guard let entries = member.value.members else { throw broken("its __metadata__ is not an object") }
                for entry in entries {
                    guard let text = entry.value.text else { throw broken("its metadata \(entry.key) is not a string") }
                    metadata[entry.key] = text
                }
                continue
            }
            let name = member.key
            guard let typeName = member.value["dtype"]?.text else { throw broken("tensor \(name) has no dtype") }
            guard let dtype = TensorType(rawValue: typeName), !dtype.isBlocks else {
                throw Failure(.badData, "\(path): tensor \(name) is stored as \(typeName), which is not supported")
            }
            guard let dimensions = member.value["shape"]?.elements else { throw broken("tensor \(name) has no shape") }
            var shape: [Int] = []
            for dimension in dimensions {
                guard let size = dimension.int, size >= 0 else {
                    throw broken("the shape of tensor \(name) is not a list of sizes")
                }
                shape.append(size)
            }
            guard let ends = member.value["data_offsets"]?.elements, ends.count == 2, let begin = ends[0].int,
                let end = ends[1].int, begin >= 0, begin <= end
            else { throw broken("tensor \(name) has no valid data_offsets") }
            guard end <= dataLength else {
                throw broken(
                    "tensor \(name) ends at byte \(end) of the data, but there are only \(dataLength): the file is truncated")
            }
            guard let needed = Self.byteCount(dtype, shape) else {
                throw broken("the shape \(shape) of tensor \(name) is too large")
            }
            guard needed == end - begin else {
                throw broken(
                    "tensor \(name) of type \(typeName) and shape \(shape) needs \(needed) bytes, but has \(end - begin)")
            }
            tensors[name] = StoredTensor(
                name: name, dtype: dtype, shape: shape, range: dataStart + begin..<dataStart + end, file: file)
        }
        var position = dataStart
        for tensor in tensors.values.sorted(by: {
            ($0.range.lowerBound, $0.range.upperBound, $0.name) < ($1.range.lowerBound, $1.range.upperBound, $1.name)
        }) {
            guard tensor.range.lowerBound >= position else { throw broken("tensor \(tensor.name) overlaps the one before it") }
            guard tensor.range.lowerBound == position else {
                throw broken("\(tensor.range.lowerBound - position) bytes before tensor \(tensor.name) belong to no tensor")
            }
            position = tensor.range.upperBound
        }
        guard position == file.size else { throw broken("its last \(file.size - position) bytes belong to no tensor") }

        self.path = path
        self.tensors = tensors
        self.metadata = metadata
        self.file = file
        names = tensors.keys.sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }
    }

    /// Bytes of a tensor, or nil if they do not fit an Int.
    static func byteCount(_ dtype: TensorType, _ shape: [Int]) -> Int? {
        var total = dtype.size
        for size in shape {
            let (product, overflow) = total.multipliedReportingOverflow(by: size)
            if overflow { return nil }
            total = product
        }
        return total
    }
}
