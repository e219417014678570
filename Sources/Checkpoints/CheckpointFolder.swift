/// A model as it is stored, a Hugging Face folder or a GGUF file: its configuration and its tensors, each checked for
/// existence, type and shape.

import Glibc
import Primitives

public final class CheckpointFolder: Sendable {
    /// Of the folder, or of the GGUF file.
    public let path: String
    public let configuration: ModelConfiguration
    /// The safetensors files, or the GGUF file, absolute or as `path` was given, sorted.
    public let weightFiles: [String]
    /// Sorted bytewise.
    public let tensorNames: [String]
    private let tensors: [String: StoredTensor]
    private let fourBitMaps: Set<String>
    private let byteMaps: Set<String>
    /// Maps whose weights bitsandbytes packed and that this model does not compute with, such as a bare encoder's pooler.
    public let unusedPackedMaps: [LinearMap]
    /// Nil for a folder.
    let gguf: GGUFModel?
    /// Outputs of the classifier that the checkpoint itself holds; nil for none.
    public let headLabelCount: Int?

    /// - Throws: `Failure` that names the file and the key or tensor that is missing, wrong or unsupported.
    public init(path: String) throws(Failure) {
        let path = path.count > 1 && path.hasSuffix("/") ? String(path.dropLast()) : path
        self.path = path
        try checkFolderCanBeEntered(path)
        let gguf = try Self.isFile(path) ? GGUFModel(file: try GGUFFile(path: path)) : nil
        self.gguf = gguf
        var configuration: ModelConfiguration
        let tensors: [String: StoredTensor]
        if let gguf {
            configuration = try ModelConfiguration(json: gguf.configuration, path: path)
            (weightFiles, tensors) = ([path], gguf.tensors)
        } else {
            configuration = try ModelConfiguration(folder: path)
            (weightFiles, tensors) = try Self.openFiles(path)
        }
        configuration.useNames(of: tensors.keys)
        self.configuration = configuration
        self.tensors = tensors
        tensorNames = tensors.keys.sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }

        func missing(_ name: String) -> Failure {
            let stored = gguf == nil ? name : GGUFModel.ggufName(name) ?? name
            let block = name.split(separator: ".").dropLast(2).joined(separator: ".")
            let fused = tensors.keys.contains {
                $0.hasPrefix(block) && ($0.hasSuffix("qkv_proj.weight") || $0.hasSuffix("gate_up_proj.weight"))
            }
            return Failure(
                .badData,
                "\(path) lacks the tensor \(stored) that a \(configuration.architecture.rawValue) model needs"
                    + (fused
                        ? ": fused projections are not supported"
                        : name == configuration.pooler.map { $0.name + ".weight" }
                            ? ": a BERT classifier reads the pooler, so take a checkpoint that has it"
                            : "; fetch the checkpoint again"))
        }
        func check(_ name: String, _ shape: [Int]) throws(Failure) {
            guard let tensor = tensors[name] else { throw missing(name) }
            guard tensor.dtype.isFloat && tensor.dtype != .f64 || tensor.dtype.isBlocks && shape.count == 2 else {
                throw Failure(
                    .badData,
                    "\(tensor.file.path): tensor \(name) is stored as \(tensor.dtype.rawValue); F32, F16 and BF16 are supported")
            }
            guard tensor.shape == shape else {
                throw Failure(
                    .badData,
                    "\(tensor.file.path): tensor \(name) has shape \(tensor.shape), but \(gguf == nil ? "config.json says" : "the metadata say") \(shape)"
                )
            }
        }
        let pooler = configuration.pooler
        for (name, shape) in configuration.denseTensors {
            // The pooler may be packed: it comes below.
            if let pooler, name.hasPrefix(pooler.name + ".") { continue }
            try check(name, shape)
        }
        var fourBitMaps: Set<String> = []
        var byteMaps: Set<String> = []
        func checkWeight(of map: LinearMap) throws(Failure) {
            let name = map.name + ".weight"
            guard let tensor = tensors[name] else { throw missing(name) }
            if tensor.dtype == .i8, configuration.quantization != nil {
                try Self.checkBytes(map, tensor, tensors)
                byteMaps.insert(map.name)
                return
            }
            let isPacked = tensors.keys.contains(name + ".absmax") || tensor.dtype == .u8
            guard isPacked else { return try check(name, [map.outputs, map.inputs]) }
            guard configuration.quantization != nil else {
                throw Failure(
                    .badData,
                    "\(tensor.file.path): tensor \(name) is packed in 4 bits, but config.json has no quantization_config")
            }
            try Self.checkPacked(map, tensor, tensors)
            fourBitMaps.insert(map.name)
        }
        for map in configuration.linearMaps { try checkWeight(of: map) }
        // transformers 5.23 packs the pooler and the head too; other versions may leave the head as it is.
        if let pooler {
            try checkWeight(of: pooler)
            try check(pooler.name + ".bias", [pooler.outputs])
        }
        var labelCount: Int?
        if let last = configuration.head(labelCount: 1).last, tensors[last.name + ".weight"] != nil {
            // Of a packed weight, only the bias shows how many outputs it has.
            guard let bias = tensors[last.name + ".bias"] else { throw missing(last.name + ".bias") }
            labelCount = bias.shape.first
        }
        headLabelCount = labelCount
        for map in labelCount.map(configuration.head) ?? [] {
            try checkWeight(of: map)
            try check(map.name + ".bias", [map.outputs])
        }
        var unused: [LinearMap] = []
        if configuration.quantization != nil {
            // One that is damaged counts as none: nobody reads it.
            let used = configuration.linearMaps + (pooler.map { [$0] } ?? []) + (labelCount.map(configuration.head) ?? [])
            let names = Set(used.map(\.name))
            for map in Self.packedMaps(tensors) where !names.contains(map.name) {
                guard (try? checkWeight(of: map)) != nil, fourBitMaps.contains(map.name) || byteMaps.contains(map.name) else {
                    continue
                }
                unused.append(map)
            }
        }
        unusedPackedMaps = unused
        self.fourBitMaps = fourBitMaps
        self.byteMaps = byteMaps
        guard gguf != nil else { return }
        // A folder may hold what nobody reads; what a GGUF file holds is computed with.
        let read = Set(configuration.denseTensors.map(\.name) + configuration.linearMaps.map { $0.name + ".weight" })
        if let stray = tensorNames.first(where: { !read.contains($0) }) {
            throw Failure(
                .badData,
                "\(path): tensor \(GGUFModel.ggufName(stray) ?? stray) is none that this \(configuration.architecture.rawValue) model computes with: not supported"
            )
        }
    }

    public var parameterCount: Int { configuration.parameterCount }

    /// Whether this is a GGUF file.
    public var isGGUF: Bool { gguf != nil }

    private static func isFile(_ path: String) -> Bool {
        var status = stat()
        return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
    }

    /// A small file of the model by its name in a Hugging Face folder: `config.json`, `tokenizer.json`, ...; nil if there is
    /// none. Those of a GGUF file are made from its metadata.
    ///
    /// - Throws: `Failure` if it cannot be read, or if the metadata say what it cannot say.
    public func companion(_ name: String) throws(Failure) -> [UInt8]? {
        if let gguf { return try gguf.companion(name) }
        return fileExists(path + "/" + name) ? try readFile(path + "/" + name) : nil
    }

    /// The names of the small files of the model.
    public func companionNames() throws(Failure) -> [String] {
        if let gguf { return gguf.companionNames }
        return try listFolder(path)
    }

    /// What a message calls a small file of the model.
    public func companionPath(_ name: String) -> String { isGGUF ? "\(path) (\(name))" : path + "/" + name }

    /// The error of a model without a tokenizer.
    public var noTokenizer: Failure {
        Failure(
            .missingInput,
            isGGUF
                ? "\(path) holds no tokenizer: convert the model again, with its tokenizer"
                : "\(path) holds no tokenizer.json: save the tokenizer with Hugging Face's fast tokenizers")
    }

    public func hasTensor(_ name: String) -> Bool { tensors[name] != nil }

    public func tensor(_ name: String) throws(Failure) -> StoredTensor {
        guard let tensor = tensors[name] else { throw Failure(.badData, "\(path) lacks the tensor \(name)") }
        return tensor
    }

    /// Whether the weight of this linear map is stored in bitsandbytes' 4-bit form.
    public func isBitsAndBytes4Bit(_ map: String) -> Bool { fourBitMaps.contains(map) }

    /// Whether the weight of this linear map is stored as bitsandbytes' LLM.int8 bytes.
    public func isBitsAndBytes8Bit(_ map: String) -> Bool { byteMaps.contains(map) }

    /// Whether the weight of this linear map is stored in a quantized form: bitsandbytes', or GGML's blocks.
    public func isQuantized(_ map: String) -> Bool {
        isBitsAndBytes4Bit(map) || isBitsAndBytes8Bit(map) || tensors[map + ".weight"]?.dtype.isBlocks == true
    }

    /// `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    private static func openFiles(_ path: String) throws(Failure) -> (files: [String], tensors: [String: StoredTensor]) {
        let single = path + "/model.safetensors"
        if fileExists(single) {
            let file = try SafetensorsFile(path: single)
            return ([single], file.tensors)
        }
        let indexPath = path + "/model.safetensors.index.json"
        guard fileExists(indexPath) else {
            throw Failure(
                .missingInput,
                "\(path) holds neither model.safetensors nor model.safetensors.index.json"
                    + (fileExists(path + "/pytorch_model.bin") || fileExists(path + "/pytorch_model.bin.index.json")
                        ? ": save the model again with safe_serialization=True"
                        : ": --model takes a Hugging Face model folder or a GGUF file"))
        }
        guard let entries = try readJSON(indexPath)["weight_map"]?.members else {
            throw Failure(.badData, "\(indexPath) has no weight_map; fetch the file again")
        }
        var shards: [String: SafetensorsFile] = [:]
        var tensors: [String: StoredTensor] = [:]
        for entry in entries {
            guard let name = entry.value.text, !name.isEmpty, !name.contains("/"), !name.utf8.contains(0) else {
                throw Failure(.badData, "\(indexPath): tensor \(entry.key) lies in \(entry.value.compact), which is no file name")
            }
            let shard: SafetensorsFile
            if let known = shards[name] {
                shard = known
            } else {
                shard = try SafetensorsFile(path: path + "/" + name)
                shards[name] = shard
            }
            guard let tensor = shard.tensors[entry.key] else {
                throw Failure(
                    .badData, "\(indexPath) says that tensor \(entry.key) lies in \(name), but it does not; fetch both again")
            }
            tensors[entry.key] = tensor
        }
        return (shards.keys.sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }.map { path + "/" + $0 }, tensors)
    }

    /// Every linear map whose weight has bitsandbytes' tensors beside it, with the shape that these tell, sorted by name.
    private static func packedMaps(_ tensors: [String: StoredTensor]) -> [LinearMap] {
        var maps: [String: LinearMap] = [:]
        for (name, tensor) in tensors {
            var shape: [Int] = []
            var map = name
            if name.hasSuffix(".SCB") {
                map = String(name.dropLast(".SCB".count))
                shape = tensors[map + ".weight"].flatMap { $0.dtype == .i8 ? $0.shape : nil } ?? []
            } else if let suffix = ["nf4", "fp4"].map({ ".weight.quant_state.bitsandbytes__" + $0 }).first(where: name.hasSuffix)
            {
                map = String(name.dropLast(suffix.count))
                let state = try? JSONValue(parsing: Array(tensor.bytes))
                shape = state?["shape"]?.elements?.compactMap(\.int) ?? []
            }
            guard shape.count == 2, shape.allSatisfy({ 1...1 << 24 ~= $0 }) else { continue }
            maps[map] = LinearMap(name: map, outputs: shape[0], inputs: shape[1])
        }
        return maps.values.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }
    }

    /// Signed bytes with a scale for each row (bitsandbytes, `Linear8bitLt`; other orders of bytes are of old GPUs).
    private static func checkBytes(_ map: LinearMap, _ weight: StoredTensor, _ tensors: [String: StoredTensor]) throws(Failure) {
        func wrong(_ what: String) -> Failure { Failure(.badData, "\(weight.file.path): \(what); fetch the checkpoint again") }
        guard weight.shape == [map.outputs, map.inputs] else {
            throw wrong("tensor \(weight.name) has shape \(weight.shape), but config.json says \([map.outputs, map.inputs])")
        }
        guard let scales = tensors[map.name + ".SCB"], scales.dtype == .f32, scales.count == map.outputs else {
            throw wrong("tensor \(map.name).SCB is missing or does not hold one F32 scale for each of \(map.outputs) rows")
        }
        if let format = tensors[map.name + ".weight_format"], try format.integers() != [0] {
            throw Failure(
                .badData,
                "\(weight.file.path): tensor \(weight.name) lies in another order than row by row (weight_format \(try format.integers())): save the model again with a newer bitsandbytes"
            )
        }
    }

    /// The tensors beside a packed weight exist with consistent sizes (bitsandbytes, `QuantState.as_dict(packed=True)`).
    private static func checkPacked(_ map: LinearMap, _ weight: StoredTensor, _ tensors: [String: StoredTensor]) throws(Failure) {
        let name = weight.name
        func wrong(_ what: String) -> Failure { Failure(.badData, "\(weight.file.path): \(what); fetch the checkpoint again") }
        // The packed bytes may be declared as another type of the same bytes (bnb_4bit_quant_storage).
        let needed = (map.outputs * map.inputs + 1) / 2
        guard weight.range.count == needed else {
            throw wrong(
                "tensor \(name) has \(weight.range.count) packed bytes, but a \(map.outputs) x \(map.inputs) matrix needs \(needed)"
            )
        }
        let states = ["nf4", "fp4"].compactMap { tensors[name + ".quant_state.bitsandbytes__" + $0] }
        guard states.count == 1, let state = states.first else { throw wrong("tensor \(name) needs one quant_state beside it") }
        guard let absmax = tensors[name + ".absmax"] else { throw wrong("tensor \(name).absmax is missing") }
        guard let table = tensors[name + ".quant_map"], table.dtype == .f32, table.count == 16 else {
            throw wrong("tensor \(name).quant_map is missing or not 16 floats")
        }
        let json: JSONValue
        do {
            json = try JSONValue(parsing: Array(state.bytes))
        } catch {
            throw wrong("tensor \(state.name) is not valid JSON: \(error.message)")
        }
        guard let block = json["blocksize"]?.int, (1...1 << 20) ~= block else {
            throw wrong("tensor \(state.name) has no valid blocksize")
        }
        let shape = json["shape"]?.elements?.compactMap(\.int)
        guard shape == [map.outputs, map.inputs] else {
            throw wrong("tensor \(state.name) says shape \(shape ?? []), but config.json \([map.outputs, map.inputs])")
        }
        let blocks = (map.outputs * map.inputs + block - 1) / block
        guard absmax.count == blocks else { throw wrong("tensor \(absmax.name) has \(absmax.count) scales, not \(blocks)") }
        guard absmax.dtype != .f32 else { return }
        guard absmax.dtype == .u8 else {
            throw wrong("tensor \(absmax.name) is stored as \(absmax.dtype.rawValue), not F32 or U8")
        }
        guard let nestedBlock = json["nested_blocksize"]?.int, (1...1 << 20) ~= nestedBlock, json["nested_offset"]?.double != nil
        else {
            throw wrong("tensor \(state.name) has no valid nested_blocksize and nested_offset")
        }
        guard let nested = tensors[name + ".nested_absmax"], nested.dtype == .f32,
            nested.count == (blocks + nestedBlock - 1) / nestedBlock
        else {
            throw wrong("tensor \(name).nested_absmax is missing or has the wrong size")
        }
        guard let nestedTable = tensors[name + ".nested_quant_map"], nestedTable.dtype == .f32, nestedTable.count == 256 else {
            throw wrong("tensor \(name).nested_quant_map is missing or not 256 floats")
        }
    }
}
