/// Writes a safetensors file tensor by tensor, in any order: beside its place first, renamed when complete.

import Glibc
import Primitives

/// Name, type and shape of a tensor to be written.
public struct TensorDeclaration: Equatable, Sendable {
    public let name: String
    public let dtype: TensorType
    public let shape: [Int]

    public init(name: String, dtype: TensorType, shape: [Int]) {
        self.name = name
        self.dtype = dtype
        self.shape = shape
    }

    /// Bytes of the elements.
    public var byteCount: Int { shape.reduce(dtype.size, *) }
}

/// The header comes first, so that every name, type and shape is declared before the first byte; space on the disk is
/// reserved then, too, so that a full disk is known before the work. Tensors lie by falling element size and then by
/// name, as Python's writer orders them, which keeps every element aligned. Not thread-safe.
public final class SafetensorsWriter {
    public let path: String
    private let temporaryPath: String
    private var descriptor: Int32
    private var places: [String: (next: Int, end: Int)] = [:]

    /// - Throws: `Failure(.badData)` if two tensors have one name, `Failure(.cannotCreate)` if the file cannot be made,
    ///   `Failure(.ioError)` if the disk is full.
    public init(path: String, tensors: [TensorDeclaration], metadata: [String: String] = [:]) throws(Failure) {
        self.path = path
        temporaryPath = "\(path).tmp-\(getpid())"
        var entries: [JSONValue.Member] = []
        if !metadata.isEmpty {
            entries.append(
                .init("__metadata__", .object(metadata.sorted { $0.key < $1.key }.map { .init($0.key, .string($0.value)) })))
        }
        var offset = 0
        var relative: [(name: String, begin: Int, end: Int)] = []
        let order = tensors.sorted {
            $0.dtype.size != $1.dtype.size ? $0.dtype.size > $1.dtype.size : $0.name.utf8.lexicographicallyPrecedes($1.name.utf8)
        }
        var names: Set<String> = []
        for tensor in order {
            guard names.insert(tensor.name).inserted else {
                throw Failure(.badData, "\(path) cannot be written: it would hold two tensors named \(tensor.name)")
            }
            guard let count = SafetensorsFile.byteCount(tensor.dtype, tensor.shape) else {
                throw Failure(.internalError, "tensor \(tensor.name) of shape \(tensor.shape) is too large to be written")
            }
            relative.append((tensor.name, offset, offset + count))
            entries.append(
                .init(
                    tensor.name,
                    .object([
                        .init("dtype", .string(tensor.dtype.rawValue)),
                        .init("shape", .array(tensor.shape.map(JSONValue.integer))),
                        .init("data_offsets", .array([.integer(offset), .integer(offset + count)])),
                    ])))
            offset += count
        }
        var header = Array(JSONValue.object(entries).compact.utf8)
        while header.count % 8 != 0 { header.append(0x20) }
        let start = 8 + header.count
        var first = ByteWriter(capacity: start)
        first.write(UInt64(header.count))
        first.write(raw: header)

        descriptor = open(temporaryPath, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else {
            throw Failure(.cannotCreate, "\(path) cannot be written: \(systemMessage(errno))")
        }
        for place in relative {
            places[place.name] = (start + place.begin, start + place.end)
        }
        let reserved = posix_fallocate(descriptor, 0, off_t(start + offset))
        if [ENOSPC, EFBIG, EDQUOT].contains(reserved) {
            let advice = reserved == EFBIG ? "raise the limit on files (ulimit -f)" : "free some space"
            throw Failure(
                .ioError, "\(path) needs \(start + offset) bytes: \(systemMessage(reserved)); \(advice) and start again")
        }
        guard ftruncate(descriptor, off_t(start + offset)) == 0 else { throw writingFailed(path) }
        try first.bytes.span.bytes.withUnsafeBytes { (bytes) throws(Failure) in try writeAll(descriptor, bytes, at: 0, path: path)
        }
    }

    deinit {
        guard descriptor >= 0 else { return }
        close(descriptor)
        unlink(temporaryPath)
    }

    /// The next bytes of a tensor; it may arrive in parts.
    public func append(_ name: String, _ bytes: UnsafeRawBufferPointer) throws(Failure) {
        guard let place = places[name] else { preconditionFailure("tensor \(name) was not declared") }
        precondition(bytes.count <= place.end - place.next, "tensor \(name) gets more bytes than declared")
        try writeAll(descriptor, bytes, at: place.next, path: path)
        places[name]!.next += bytes.count
    }

    public func append(_ name: String, floats: [Float]) throws(Failure) {
        try floats.span.bytes.withUnsafeBytes { (bytes) throws(Failure) in try append(name, bytes) }
    }

    public func append(_ name: String, bytes: [UInt8]) throws(Failure) {
        try bytes.span.bytes.withUnsafeBytes { (bytes) throws(Failure) in try append(name, bytes) }
    }

    /// Makes the file durable and puts it in its place.
    public func finish() throws(Failure) {
        for (name, place) in places {
            precondition(place.next == place.end, "tensor \(name) lacks \(place.end - place.next) bytes")
        }
        guard fsync(descriptor) == 0 else { throw writingFailed(path) }
        close(descriptor)
        descriptor = -1
        guard rename(temporaryPath, path) == 0 else {
            let failure = Failure(.cannotCreate, "\(path) cannot be put in place: \(systemMessage(errno))")
            unlink(temporaryPath)
            throw failure
        }
    }
}

/// Writes a whole safetensors file.
public func writeSafetensors(
    _ path: String, tensors: [(name: String, type: TensorType, shape: [Int], bytes: [UInt8])],
    metadata: [String: String] = ["format": "pt"]
) throws(Failure) {
    let writer = try SafetensorsWriter(
        path: path, tensors: tensors.map { TensorDeclaration(name: $0.name, dtype: $0.type, shape: $0.shape) },
        metadata: metadata)
    for tensor in tensors { try writer.append(tensor.name, bytes: tensor.bytes) }
    try writer.finish()
}

/// Writes a whole safetensors file of float32 tensors.
public func writeSafetensors(
    _ path: String, floats tensors: [(name: String, shape: [Int], values: [Float])],
    metadata: [String: String] = ["format": "pt"]
) throws(Failure) {
    let writer = try SafetensorsWriter(
        path: path, tensors: tensors.map { TensorDeclaration(name: $0.name, dtype: .f32, shape: $0.shape) },
        metadata: metadata)
    for tensor in tensors { try writer.append(tensor.name, floats: tensor.values) }
    try writer.finish()
}

/// Writes a whole small file: beside its place, made durable, renamed.
public func writeFile(_ path: String, _ bytes: [UInt8]) throws(Failure) { try FileWriting.replace(path, with: bytes) }

private func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: Int, path: String) throws(Failure) {
    var done = 0
    while done < bytes.count {
        // Linux writes at most 2 GiB - 4 KiB a call.
        let written = pwrite(descriptor, bytes.baseAddress! + done, min(bytes.count - done, 1 << 30), off_t(offset + done))
        if written < 0, errno == EINTR { continue }
        guard written > 0 else { throw writingFailed(path) }
        done += written
    }
}

private func writingFailed(_ path: String) -> Failure {
    let code = errno
    return Failure(
        .ioError, "writing \(path) failed: \(systemMessage(code)); nothing was replaced, free some space and start again")
}
