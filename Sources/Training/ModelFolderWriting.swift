/// Writes model folders from others, one part of a tensor at a time; here, an adapter merged into its base.

import Adapters
import Checkpoints
import Glibc
import LinearAlgebra
import Primitives
import Quantization

/// How far the writing of a model folder has come.
public struct WritingProgress: Sendable {
    public let tensorsDone: Int
    public let tensorCount: Int
    public let bytesDone: Int
    public let byteCount: Int
}

public enum ModelFolderWriting {
    /// Writes base + adapter as a dense checkpoint.
    ///
    /// A map's weight becomes W + s B A, computed in float32 and rounded once to the type in which the base stores it;
    /// a quantized base is decoded to the type it had before, GGML's blocks to float16. A classifier's head takes the place of
    /// the base's. Everything else is copied.
    /// - Parameters:
    ///   - output: a folder that does not exist yet, or is empty
    ///   - progress: false stops; nothing is kept
    public static func merge(
        checkpoint: CheckpointFolder, adapter: PEFTAdapter, output: String,
        progress: @escaping (WritingProgress) -> Bool = { _ in true }
    ) throws(Failure) {
        let maps = checkpoint.configuration.linearMaps
        // Beside the blocks' maps, those that the base may have packed: without quantization_config they have to be dense.
        let ownHead = checkpoint.headLabelCount.map(checkpoint.configuration.head) ?? []
        let others = (checkpoint.configuration.pooler.map { [$0] } ?? []) + ownHead + checkpoint.unusedPackedMaps
        let byMap = Dictionary(uniqueKeysWithValues: (maps + others).map { ($0.name, $0) })
        let entries = Dictionary(uniqueKeysWithValues: try adapter.entries(for: maps).map { ($0.map, $0) })
        var configuration = try configurationFile(checkpoint)
        if checkpoint.configuration.quantization != nil {
            configuration = .object((configuration.members ?? []).filter { $0.key != "quantization_config" })
        }
        let head = try MergedHead(adapter, checkpoint.configuration)
        configuration = head.configure(configuration)
        var declarations: [TensorDeclaration] = []
        for name in checkpoint.tensorNames where !head.replaces(name) {
            let tensor = try checkpoint.tensor(name)
            if let map = packedMap(name, checkpoint, byMap) {
                if name == map.name + ".weight" {
                    declarations.append(
                        TensorDeclaration(name: name, dtype: try typeBefore(map, checkpoint), shape: [map.outputs, map.inputs]))
                }
            } else {
                declarations.append(
                    TensorDeclaration(name: name, dtype: tensor.dtype.isBlocks ? .f16 : tensor.dtype, shape: tensor.shape))
            }
        }
        declarations += head.declarations
        let folder = try stage(checkpoint, output, configuration, declarations.map { [$0] }, progress: progress) {
            (index, writer) throws(Failure) in
            let declaration = declarations[index]
            let name = declaration.name
            if let values = head.values(name) {
                try writer.append(name, floats: values)
            } else if name.hasSuffix(".weight"), let map = byMap[String(name.dropLast(".weight".count))],
                entries[map.name] != nil || checkpoint.isQuantized(map.name)
            {
                let weight = try QuantizedMatrix.load(map: map, from: checkpoint, as: .stored)
                try mergeMatrix(weight, entries[map.name], declaration, writer)
            } else if try checkpoint.tensor(name).dtype.isBlocks {
                let (rows, columns) = (declaration.shape[0], declaration.shape[1])
                let weight = try QuantizedMatrix(stored: try checkpoint.tensor(name), rows: rows, columns: columns)
                try mergeMatrix(weight, nil, declaration, writer)
            } else {
                try copy(try checkpoint.tensor(name), writer)
            }
        }
        try putInPlace([folder])
    }

    /// Files beside the weights that belong to a model: tokenizer, templates, licences.
    private static func isCompanion(_ name: String) -> Bool {
        guard name != "config.json", !name.hasSuffix(".index.json") else { return false }
        return [".json", ".txt", ".model", ".jinja", ".tiktoken"].contains { name.hasSuffix($0) } || name.hasPrefix("LICENSE")
            || name.hasPrefix("NOTICE") || name == "README.md"
    }

    /// Folders of a sentence-transformers model beside the transformer itself, such as `1_Pooling`, that `modules.json` names
    /// and that are there: a layer without settings has none everywhere.
    private static func moduleFolders(_ checkpoint: CheckpointFolder) throws(Failure) -> [String] {
        guard !checkpoint.isGGUF, let bytes = try checkpoint.companion("modules.json"),
            let modules = (try? JSONValue(parsing: bytes))?.elements
        else { return [] }
        var names: [String] = []
        for name in modules.compactMap({ $0["path"]?.text }) {
            // A name from a file stays inside the folder.
            guard !name.isEmpty, name != ".", name != "..", !name.contains("/"), !name.utf8.contains(0), !names.contains(name),
                isFolder(checkpoint.path + "/" + name)
            else { continue }
            names.append(name)
        }
        return names
    }

    private static func kind(_ path: String) -> mode_t? {
        var status = stat()
        return stat(path, &status) == 0 ? status.st_mode & S_IFMT : nil
    }
    private static func isFolder(_ path: String) -> Bool { kind(path) == S_IFDIR }
    private static func isPlainFile(_ path: String) -> Bool { kind(path) == S_IFREG }

    /// A file of weights holds no more, unless one tensor needs it; as Hugging Face's tools cut them.
    static let shardBytes = 5_000_000_000

    /// The folder with its small files, around the writing of its weights, beside its place.
    ///
    /// - Parameters:
    ///   - groups: tensors that stay in one file, in the order in which they are written
    ///   - body: writes the tensors of a group
    static func stage(
        _ checkpoint: CheckpointFolder, _ output: String, _ configuration: JSONValue, _ groups: [[TensorDeclaration]],
        shardBytes: Int = shardBytes, progress: (WritingProgress) -> Bool,
        _ body: (_ group: Int, SafetensorsWriter) throws(Failure) -> Void
    ) throws(Failure) -> FolderWriting {
        let sizes = groups.map { $0.reduce(0) { $0 + $1.byteCount } }
        let total = sizes.reduce(0, +)
        var shards: [Range<Int>] = []
        var (first, bytes) = (0, 0)
        for (index, size) in sizes.enumerated() {
            if bytes > 0, bytes + size > shardBytes {
                shards.append(first..<index)
                (first, bytes) = (index, 0)
            }
            bytes += size
        }
        shards.append(first..<groups.count)
        func digits(_ number: Int) -> String { String(String(100_000 + number).dropFirst()) }
        let files = shards.indices.map { index in
            shards.count == 1 ? "model.safetensors" : "model-\(digits(index + 1))-of-\(digits(shards.count)).safetensors"
        }
        return try stageFolder(output, replacing: { _ in false }) { (folder) throws(Failure) in
            for name in try checkpoint.companionNames() where isCompanion(name) {
                if let bytes = try checkpoint.companion(name) { try writeFile(folder + "/" + name, bytes) }
            }
            for name in try moduleFolders(checkpoint) {
                guard mkdir(folder + "/" + name, 0o755) == 0 else {
                    throw Failure(.cannotCreate, "the folder \(folder)/\(name) cannot be made: \(systemMessage(errno))")
                }
                let source = checkpoint.path + "/" + name
                for file in try listFolder(source) where isPlainFile(source + "/" + file) {
                    try writeFile(folder + "/" + name + "/" + file, try readFile(source + "/" + file))
                }
            }
            try writeFile(folder + "/config.json", Array((configuration.pretty + "\n").utf8))
            var done = 0
            for (file, shard) in zip(files, shards) {
                let writer = try SafetensorsWriter(
                    path: folder + "/" + file, tensors: groups[shard].flatMap { $0 }, metadata: ["format": "pt"])
                for group in shard {
                    try body(group, writer)
                    done += sizes[group]
                    let goesOn = progress(
                        WritingProgress(tensorsDone: group + 1, tensorCount: groups.count, bytesDone: done, byteCount: total))
                    guard goesOn else { throw Failure(.interrupted, "writing \(output) was stopped; nothing was kept") }
                }
                try writer.finish()
            }
            guard shards.count > 1 else { return }
            var places: [JSONValue.Member] = []
            for (file, shard) in zip(files, shards) {
                for tensor in groups[shard].joined() { places.append(.init(tensor.name, .string(file))) }
            }
            places.sort { $0.key.utf8.lexicographicallyPrecedes($1.key.utf8) }
            let index = JSONValue.object([
                .init("metadata", .object([.init("total_size", .integer(total))])), .init("weight_map", .object(places)),
            ])
            try writeFile(folder + "/model.safetensors.index.json", Array((index.pretty + "\n").utf8))
        }
    }

    /// A stored tensor as it is, in parts; its pages are given back as they are done.
    static func copy(_ tensor: StoredTensor, _ writer: SafetensorsWriter) throws(Failure) {
        try tensor.forEachPart { (part) throws(Failure) in
            try writer.append(tensor.name, UnsafeRawBufferPointer(rebasing: tensor.file.bytes[part]))
            if tensor.interleavedHeadSize == nil { tensor.file.release(part) }
        }
    }

    static func configurationFile(_ checkpoint: CheckpointFolder) throws(Failure) -> JSONValue {
        guard let bytes = try checkpoint.companion("config.json"), let value = try? JSONValue(parsing: bytes) else {
            throw Failure(.missingInput, "\(checkpoint.path) holds no config.json")
        }
        return value
    }

    /// The linear map to whose packed form a stored tensor belongs.
    private static func packedMap(_ name: String, _ checkpoint: CheckpointFolder, _ maps: [String: LinearMap]) -> LinearMap? {
        guard let end = name.prefix(before: ".weight") ?? name.prefix(before: ".SCB") else { return nil }
        let map = String(end)
        return checkpoint.isQuantized(map) ? maps[map] : nil
    }

    /// The type that a packed weight had before it was quantized.
    private static func typeBefore(_ map: LinearMap, _ checkpoint: CheckpointFolder) throws(Failure) -> TensorType {
        // LLM.int8 and GGML's blocks do not say: their scales are halves, or go through them.
        guard checkpoint.isBitsAndBytes4Bit(map.name) else { return .f16 }
        let prefix = map.name + ".weight.quant_state.bitsandbytes__"
        let state = try checkpoint.tensor(checkpoint.hasTensor(prefix + "nf4") ? prefix + "nf4" : prefix + "fp4")
        let json = try? JSONValue(parsing: Array(state.bytes))
        return [TensorType.f32, .f16, .bf16].first { $0.torchName == json?["dtype"]?.text } ?? .f32
    }

    /// W + s B A in slabs of rows; W where there is no entry.
    private static func mergeMatrix(
        _ weight: QuantizedMatrix, _ entry: PEFTAdapter.Entry?, _ declaration: TensorDeclaration, _ writer: SafetensorsWriter
    ) throws(Failure) {
        let (outputs, inputs) = (weight.rows, weight.columns)
        let task = 64
        let slab = max(task, (1 << 22) / inputs / task * task)
        for start in stride(from: 0, to: outputs, by: slab) {
            let rows = start..<min(outputs, start + slab)
            var values = [Float](repeating: 0, count: rows.count * inputs)
            values.withUnsafeMutableBufferPointer { buffer in
                nonisolated(unsafe) let target = buffer.baseAddress!
                Parallel.forEach(count: (rows.count + task - 1) / task) { index in
                    let part = Parallel.range(index, of: rows.count, size: task)
                    let result = target + part.lowerBound * inputs
                    let place = rows.lowerBound + part.lowerBound
                    weight.decode(rows: place..<place + part.count, columns: 0..<inputs, into: result, stride: inputs)
                    guard let entry else { return }
                    entry.a.withUnsafeBufferPointer { a in
                        entry.b.withUnsafeBufferPointer { b in
                            gemm(
                                m: part.count, n: inputs, k: entry.rank, alpha: entry.scale,
                                b.baseAddress! + place * entry.rank,
                                lda: entry.rank, a.baseAddress!, ldb: inputs, beta: 1, result, ldc: inputs)
                        }
                    }
                }
            }
            // Infinities and NaNs have the largest exponent.
            func append(_ halves: [UInt16], exponent: UInt16) throws(Failure) {
                try checkFinite(halves.firstIndex { $0 & exponent == exponent })
                try halves.span.bytes.withUnsafeBytes { (bytes) throws(Failure) in try writer.append(declaration.name, bytes) }
            }
            func checkFinite(_ bad: Int?) throws(Failure) {
                guard let bad else { return }
                throw Failure(
                    .badData,
                    "merging \(declaration.name) gives \(values[bad]) in row \(rows.lowerBound + bad / inputs), which is no finite number as \(declaration.dtype.rawValue): the adapter or the base is out of range"
                )
            }
            switch declaration.dtype {
            case .bf16: try append(values.map(bfloat16Bits), exponent: 0x7F80)
            case .f16: try append(values.map { Float16($0).bitPattern }, exponent: 0x7C00)
            default:
                try checkFinite(values.firstIndex { !$0.isFinite })
                try writer.append(declaration.name, floats: values)
            }
        }
    }
}

extension String {
    /// The part before the first occurrence of `text`; nil without one.
    fileprivate func prefix(before text: String) -> Substring? {
        var index = startIndex
        while index < endIndex {
            if self[index...].hasPrefix(text) { return self[..<index] }
            formIndex(after: &index)
        }
        return nil
    }
}
