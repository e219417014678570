/// An adapter as Hugging Face PEFT stores it: `adapter_config.json` and `adapter_model.safetensors`, read and written.
///
/// Only plain LoRA is a PEFT adapter here: W + s B A with s = lora_alpha / r, or lora_alpha / sqrt(r) with
/// `use_rslora`; `rank_pattern` and `alpha_pattern` set r and lora_alpha of single modules. What would change the
/// computation in another way (DoRA, biases, saved modules, a base changed at the start) is refused by name.

import Checkpoints
import Primitives

public struct PEFTAdapter: Sendable {
    /// The factors of one linear map: W + scale B A.
    public struct Entry: Sendable, Equatable {
        /// Path of the linear map: `model.layers.0.self_attn.q_proj`.
        public let map: String
        /// A, `[rank, inputs]`, row-major.
        public let a: [Float]
        /// B, `[outputs, rank]`, row-major.
        public let b: [Float]
        public let rank: Int
        public let scale: Float
        public let outputs: Int
        public let inputs: Int

        public init(map: String, a: [Float], b: [Float], rank: Int, scale: Float, outputs: Int, inputs: Int) {
            precondition(a.count == rank * inputs && b.count == outputs * rank, "factors of \(map) do not have their shapes")
            self.map = map
            self.a = a
            self.b = b
            self.rank = rank
            self.scale = scale
            self.outputs = outputs
            self.inputs = inputs
        }
    }

    public let entries: [Entry]
    /// Where the adapter was read from, or what it is called; for messages.
    public let origin: String
    /// The configuration's `base_model_name_or_path`.
    public let baseModel: String?

    public init(entries: [Entry], origin: String = "the adapter", baseModel: String? = nil) {
        self.entries = entries
        self.origin = origin
        self.baseModel = baseModel
    }

    /// Reads an adapter's folder.
    ///
    /// - Throws: `Failure` that names the file and the field or tensor that is wrong or not supported.
    public init(folder: String) throws(Failure) {
        let configurationPath = folder + "/adapter_config.json"
        guard fileExists(configurationPath) else {
            throw Failure(
                .missingInput, "\(folder) holds no adapter_config.json: an adapter is a folder that PEFT or Tributary wrote")
        }
        let configuration = try PEFTConfiguration(json: try readJSON(configurationPath), path: configurationPath)
        let path = folder + "/adapter_model.safetensors"
        guard fileExists(path) else {
            throw Failure(
                .missingInput,
                "\(folder) holds no adapter_model.safetensors"
                    + (fileExists(folder + "/adapter_model.bin") ? ": save the adapter again with safe_serialization=True" : ""))
        }
        let file = try SafetensorsFile(path: path)
        let prefix = "base_model.model."
        var maps: [String] = []
        for name in file.names {
            let isA = name.hasSuffix(".lora_A.weight")
            guard name.hasPrefix(prefix), isA || name.hasSuffix(".lora_B.weight") else {
                throw Failure(.badData, "\(path): tensor \(name) is not supported: only lora_A and lora_B of linear maps are")
            }
            if isA { maps.append(String(name.dropFirst(prefix.count).dropLast(".lora_A.weight".count))) }
        }
        guard file.names.count == 2 * maps.count, !maps.isEmpty else {
            throw Failure(
                .badData, "\(path) does not hold one lora_A and one lora_B for each linear map; export the adapter again")
        }
        func matrix(_ name: String) throws(Failure) -> (values: [Float], rows: Int, columns: Int) {
            guard let tensor = file.tensors[name] else {
                throw Failure(.badData, "\(path) lacks the tensor \(name); export the adapter again")
            }
            guard tensor.shape.count == 2 else {
                throw Failure(.badData, "\(path): tensor \(name) has shape \(tensor.shape), not rows and columns")
            }
            let values = try tensor.floats()
            if let bad = values.firstIndex(where: { !$0.isFinite }) {
                throw Failure(
                    .badData, "\(path): tensor \(name) holds \(values[bad]) at position \(bad); train the adapter again")
            }
            return (values, tensor.shape[0], tensor.shape[1])
        }
        var entries: [Entry] = []
        for map in maps {
            let a = try matrix(prefix + map + ".lora_A.weight")
            let b = try matrix(prefix + map + ".lora_B.weight")
            let (rank, scale) = try configuration.rankAndScale(of: map)
            guard a.rows == rank, b.columns == rank, a.columns >= 1, b.rows >= 1 else {
                throw Failure(
                    .badData,
                    "\(path): the factors of \(map) are \(b.rows) x \(b.columns) and \(a.rows) x \(a.columns), but adapter_config.json says rank \(rank)"
                )
            }
            entries.append(
                Entry(map: map, a: a.values, b: b.values, rank: rank, scale: scale, outputs: b.rows, inputs: a.columns))
        }
        self.init(entries: entries, origin: folder, baseModel: configuration.baseModel)
    }

    /// The entries in model order.
    ///
    /// - Throws: `Failure` if one belongs to another base: its map is not there, or has another shape.
    public func entries(for maps: [LinearMap]) throws(Failure) -> [Entry] {
        let byName = Dictionary(uniqueKeysWithValues: maps.map { ($0.name, $0) })
        for entry in entries {
            guard let map = byName[entry.map] else {
                throw Failure(
                    .badData, "\(origin) belongs to another base model: it adapts \(entry.map), which this one does not have")
            }
            guard map.outputs == entry.outputs, map.inputs == entry.inputs else {
                throw Failure(
                    .badData,
                    "\(origin) belongs to another base model: it adapts \(entry.map) as \(entry.outputs) x \(entry.inputs), but here it is \(map.outputs) x \(map.inputs)"
                )
            }
        }
        let order = Dictionary(uniqueKeysWithValues: maps.enumerated().map { ($1.name, $0) })
        return entries.sorted { order[$0.map]! < order[$1.map]! }
    }

    /// Writes the folder; an adapter that was there is replaced in one step.
    ///
    /// All entries get one rank, the largest, padded with zeros where they are smaller. Entries of one rank and scale
    /// are written as they are, with `lora_alpha` = scale x r; others have their scale folded into B, with
    /// `lora_alpha` = r.
    /// - Parameters:
    ///   - maps: the base's linear maps, so that `target_modules` can name modules that are adapted in every layer
    ///   - extraFiles: further files of the folder, such as a README
    public func write(folder: String, maps: [LinearMap], extraFiles: [(name: String, bytes: [UInt8])] = []) throws(Failure) {
        guard let first = entries.first else { throw Failure(.internalError, "an adapter without factors cannot be written") }
        let isUniform = entries.allSatisfy { $0.rank == first.rank && $0.scale == first.scale }
        let rank = entries.reduce(0) { max($0, $1.rank) }
        let alpha = isUniform ? Double(first.scale) * Double(rank) : Double(rank)
        let configuration = PEFTConfiguration.text(
            rank: rank, alpha: alpha, targetModules: targetModules(maps), baseModel: baseModel)
        try writeFolder(folder, replacing: Self.isOurs) { (temporary) throws(Failure) in
            try writeFile(temporary + "/adapter_config.json", Array(configuration.utf8))
            let prefix = "base_model.model."
            let writer = try SafetensorsWriter(
                path: temporary + "/adapter_model.safetensors",
                tensors: entries.flatMap {
                    [
                        TensorDeclaration(name: prefix + $0.map + ".lora_A.weight", dtype: .f32, shape: [rank, $0.inputs]),
                        TensorDeclaration(name: prefix + $0.map + ".lora_B.weight", dtype: .f32, shape: [$0.outputs, rank]),
                    ]
                }, metadata: ["format": "pt"])
            for entry in entries {
                let padded = entry.padded(to: rank, foldingScale: !isUniform)
                try writer.append(prefix + entry.map + ".lora_A.weight", floats: padded.a)
                try writer.append(prefix + entry.map + ".lora_B.weight", floats: padded.b)
            }
            try writer.finish()
            for file in extraFiles { try writeFile(temporary + "/" + file.name, file.bytes) }
        }
    }

    /// Whether a file of this name may be replaced with an adapter's folder.
    public static func isOurs(_ name: String) -> Bool {
        name.hasPrefix("adapter_") || name == "README.md" || name == "tributary.json"
    }

    /// Short names of modules that are adapted wherever the base has them, whole paths of the others.
    private func targetModules(_ maps: [LinearMap]) -> [String] {
        let adapted = Set(entries.map(\.map))
        var missing: Set<String> = []
        for map in maps where !adapted.contains(map.name) { missing.insert(map.moduleName) }
        let known = Set(maps.map(\.name))
        var names: [String] = []
        for entry in entries {
            let short = LinearMap(name: entry.map, outputs: 0, inputs: 0).moduleName
            let name = known.contains(entry.map) && !missing.contains(short) ? short : entry.map
            if !names.contains(name) { names.append(name) }
        }
        return names
    }
}

extension PEFTAdapter.Entry {
    /// The same product at a rank that is not smaller: rows of zeros under A, columns of zeros beside B.
    func padded(to rank: Int, foldingScale: Bool) -> (a: [Float], b: [Float]) {
        let factor = foldingScale ? scale : 1
        guard rank > self.rank || factor != 1 else { return (a, b) }
        var wide = [Float](repeating: 0, count: outputs * rank)
        for row in 0..<outputs {
            for column in 0..<self.rank { wide[row * rank + column] = b[row * self.rank + column] * factor }
        }
        return (a + [Float](repeating: 0, count: (rank - self.rank) * inputs), wide)
    }
}
