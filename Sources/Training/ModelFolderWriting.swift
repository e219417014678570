/// New model folders from old ones: an adapter merged into its base, a base in 4 bits; one part of a tensor at a time.

import Adapters
import Checkpoints
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
    /// a base in 4 bits is decoded to the type it had before. A classifier's head takes the place of the base's. Everything
    /// else is copied.
    /// - Parameters:
    ///   - output: a folder that does not exist yet, or is empty
    ///   - progress: false stops; nothing is kept
    public static func merge(
        checkpoint: CheckpointFolder, adapter: PEFTAdapter, output: String,
        progress: @escaping (WritingProgress) -> Bool = { _ in true }
    ) throws(Failure) {
        let maps = checkpoint.configuration.linearMaps
        let byMap = Dictionary(uniqueKeysWithValues: maps.map { ($0.name, $0) })
        let entries = Dictionary(uniqueKeysWithValues: try adapter.entries(for: maps).map { ($0.map, $0) })
        var configuration = try readJSON(checkpoint.path + "/config.json")
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
                declarations.append(TensorDeclaration(name: name, dtype: tensor.dtype, shape: tensor.shape))
            }
        }
        declarations += head.declarations
        try write(checkpoint, output, configuration, declarations, progress) { (writer, report) throws(Failure) in
            for declaration in declarations {
                let name = declaration.name
                if let values = head.values(name) {
                    try writer.append(name, floats: values)
                } else if name.hasSuffix(".weight"), let map = byMap[String(name.dropLast(".weight".count))],
                    entries[map.name] != nil || checkpoint.isBitsAndBytes4Bit(map.name)
                {
                    try mergeMap(map, checkpoint, entries[map.name], declaration, writer)
                } else {
                    try copy(try checkpoint.tensor(name), writer)
                }
                try report(declaration)
            }
        }
    }

    /// Writes the checkpoint with the linear maps of its blocks in bitsandbytes' NF4.
    ///
    /// - Parameters:
    ///   - nested: whether the scales are quantized too, as bitsandbytes' double quantization
    ///   - output: a folder that does not exist yet, or is empty
    public static func quantize(
        checkpoint: CheckpointFolder, output: String, nested: Bool = true,
        progress: @escaping (WritingProgress) -> Bool = { _ in true }
    ) throws(Failure) {
        guard checkpoint.configuration.quantization == nil else {
            throw Failure(.usage, "\(checkpoint.path) is quantized already: give the folder of the unquantized model")
        }
        let maps = Dictionary(uniqueKeysWithValues: checkpoint.configuration.linearMaps.map { ($0.name + ".weight", $0) })
        var declarations: [TensorDeclaration] = []
        var computeType = TensorType.f32
        for name in checkpoint.tensorNames {
            let tensor = try checkpoint.tensor(name)
            if maps[name] != nil {
                computeType = tensor.dtype
                declarations += FourBitCodes.declarations(name: name, shape: tensor.shape, dtype: tensor.dtype, nested: nested)
            } else {
                declarations.append(TensorDeclaration(name: name, dtype: tensor.dtype, shape: tensor.shape))
            }
        }
        var configuration = try readJSON(checkpoint.path + "/config.json")
        configuration.set(
            "quantization_config",
            FourBitCodes.quantizationConfiguration(computeType: computeType, nested: nested, skippedModules: []))
        try write(checkpoint, output, configuration, declarations, progress) { (writer, report) throws(Failure) in
            for name in checkpoint.tensorNames {
                let tensor = try checkpoint.tensor(name)
                guard maps[name] != nil else {
                    try copy(tensor, writer)
                    try report(TensorDeclaration(name: name, dtype: tensor.dtype, shape: tensor.shape))
                    continue
                }
                let codes = try NF4.encode(tensor, nested: nested)
                for part in codes.serialized(name: name, shape: tensor.shape, dtype: tensor.dtype) {
                    try writer.append(part.declaration.name, bytes: part.bytes)
                    try report(part.declaration)
                }
            }
        }
    }

    /// Files beside the weights that belong to a model: tokenizer, templates, licences.
    private static func isCompanion(_ name: String) -> Bool {
        guard name != "config.json", !name.hasSuffix(".index.json") else { return false }
        return [".json", ".txt", ".model", ".jinja", ".tiktoken"].contains { name.hasSuffix($0) } || name.hasPrefix("LICENSE")
            || name.hasPrefix("NOTICE")
    }

    /// The folder with its small files, around the writing of `model.safetensors`.
    private static func write(
        _ checkpoint: CheckpointFolder, _ output: String, _ configuration: JSONValue, _ declarations: [TensorDeclaration],
        _ progress: @escaping (WritingProgress) -> Bool,
        _ body: (SafetensorsWriter, _ report: (TensorDeclaration) throws(Failure) -> Void) throws(Failure) -> Void
    ) throws(Failure) {
        let total = declarations.reduce(0) { $0 + $1.byteCount }
        try writeFolder(output, replacing: { _ in false }) { (folder) throws(Failure) in
            for name in try listFolder(checkpoint.path) where isCompanion(name) {
                try writeFile(folder + "/" + name, try readFile(checkpoint.path + "/" + name))
            }
            try writeFile(folder + "/config.json", Array((configuration.pretty + "\n").utf8))
            let writer = try SafetensorsWriter(
                path: folder + "/model.safetensors", tensors: declarations, metadata: ["format": "pt"])
            var (done, bytes) = (0, 0)
            try body(writer) { (declaration) throws(Failure) in
                done += 1
                bytes += declaration.byteCount
                let goesOn = progress(
                    WritingProgress(tensorsDone: done, tensorCount: declarations.count, bytesDone: bytes, byteCount: total))
                guard goesOn else { throw Failure(.interrupted, "writing \(output) was stopped; nothing was kept") }
            }
            try writer.finish()
        }
    }

    /// A stored tensor as it is, in parts; its pages are given back as they are done.
    private static func copy(_ tensor: StoredTensor, _ writer: SafetensorsWriter) throws(Failure) {
        var start = tensor.range.lowerBound
        while start < tensor.range.upperBound {
            let part = start..<min(start + 64 << 20, tensor.range.upperBound)
            try writer.append(tensor.name, UnsafeRawBufferPointer(rebasing: tensor.file.bytes[part]))
            tensor.file.release(part)
            start = part.upperBound
        }
    }

    /// The linear map to whose packed form a stored tensor belongs.
    private static func packedMap(_ name: String, _ checkpoint: CheckpointFolder, _ maps: [String: LinearMap]) -> LinearMap? {
        guard let end = name.prefix(before: ".weight") else { return nil }
        let map = String(end)
        return checkpoint.isBitsAndBytes4Bit(map) ? maps[map] : nil
    }

    /// The type that a packed weight had before it was quantized.
    private static func typeBefore(_ map: LinearMap, _ checkpoint: CheckpointFolder) throws(Failure) -> TensorType {
        let prefix = map.name + ".weight.quant_state.bitsandbytes__"
        let state = try checkpoint.tensor(checkpoint.hasTensor(prefix + "nf4") ? prefix + "nf4" : prefix + "fp4")
        let json = try? JSONValue(parsing: Array(state.bytes))
        return [TensorType.f32, .f16, .bf16].first { $0.torchName == json?["dtype"]?.text } ?? .f32
    }

    /// W + s B A in slabs of rows.
    private static func mergeMap(
        _ map: LinearMap, _ checkpoint: CheckpointFolder, _ entry: PEFTAdapter.Entry?, _ declaration: TensorDeclaration,
        _ writer: SafetensorsWriter
    ) throws(Failure) {
        let weight = try QuantizedMatrix.load(map: map, from: checkpoint, as: .stored)
        let task = 64
        let slab = max(task, (1 << 22) / map.inputs / task * task)
        for start in stride(from: 0, to: map.outputs, by: slab) {
            let rows = start..<min(map.outputs, start + slab)
            var values = [Float](repeating: 0, count: rows.count * map.inputs)
            values.withUnsafeMutableBufferPointer { buffer in
                nonisolated(unsafe) let target = buffer.baseAddress!
                Parallel.forEach(count: (rows.count + task - 1) / task) { index in
                    let part = Parallel.range(index, of: rows.count, size: task)
                    let result = target + part.lowerBound * map.inputs
                    let place = rows.lowerBound + part.lowerBound
                    weight.decode(rows: place..<place + part.count, columns: 0..<map.inputs, into: result, stride: map.inputs)
                    guard let entry else { return }
                    entry.a.withUnsafeBufferPointer { a in
                        entry.b.withUnsafeBufferPointer { b in
                            gemm(
                                m: part.count, n: map.inputs, k: entry.rank, alpha: entry.scale,
                                b.baseAddress! + place * entry.rank,
                                lda: entry.rank, a.baseAddress!, ldb: map.inputs, beta: 1, result, ldc: map.inputs)
                        }
                    }
                }
            }
            if let bad = values.firstIndex(where: { !$0.isFinite }) {
                throw Failure(
                    .badData,
                    "merging \(map.name) gives \(values[bad]) in row \(rows.lowerBound + bad / map.inputs): the adapter or the base is out of range"
                )
            }
            switch declaration.dtype {
            case .bf16: try append(values.map(bfloat16Bits), declaration.name, writer)
            case .f16: try append(values.map { Float16($0).bitPattern }, declaration.name, writer)
            default: try writer.append(declaration.name, floats: values)
            }
        }
    }

    private static func append(_ halves: [UInt16], _ name: String, _ writer: SafetensorsWriter) throws(Failure) {
        try halves.span.bytes.withUnsafeBytes { (bytes) throws(Failure) in try writer.append(name, bytes) }
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
