/// An adapter as Hugging Face PEFT stores it: `adapter_config.json` and `adapter_model.safetensors`, read and written.
///
/// Only plain LoRA is a PEFT adapter here: W + s B A with s = lora_alpha / r, or lora_alpha / sqrt(r) with
/// `use_rslora`; `rank_pattern` and `alpha_pattern` set r and lora_alpha of single modules. A classifier's head is trained
/// whole: for Hugging Face's classifier classes it is one of PEFT's `modules_to_save`; for encoders that have no class with
/// a head, it lies beside the adapter in `head.safetensors`. What would change the computation in another way (DoRA, biases,
/// other saved modules, a base changed at the start) is refused by name.

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

    /// A linear map of a classifier's head, trained whole.
    public struct HeadEntry: Sendable, Equatable {
        /// Path of the linear map: `classifier`.
        public let map: String
        /// `[outputs, inputs]`, row-major.
        public let weight: [Float]
        /// `[outputs]`.
        public let bias: [Float]

        public init(map: String, weight: [Float], bias: [Float]) {
            precondition(!bias.isEmpty && weight.count % bias.count == 0, "the head \(map) does not have its shape")
            self.map = map
            self.weight = weight
            self.bias = bias
        }

        public var outputs: Int { bias.count }
        public var inputs: Int { weight.count / bias.count }
    }

    /// Where a head lies.
    public enum HeadPlace: Sendable, Equatable {
        /// Among the adapter's tensors, as PEFT saves modules of a classifier class.
        case savedModules
        /// In `head.safetensors` beside them: the base has no class with a head.
        case file

        /// - Parameter configuration: the base's
        public init(_ configuration: ModelConfiguration) {
            self = configuration.encoder?.summary == .mean ? .file : .savedModules
        }
    }

    public let entries: [Entry]
    /// In the order of `ModelConfiguration.head`; empty without a head.
    public let head: [HeadEntry]
    public let headPlace: HeadPlace
    /// Of a classifier, in the order of its head's outputs; `labels.json` beside the adapter. Empty where it is not known.
    public let labels: [String]
    /// Where the adapter was read from, or what it is called; for messages.
    public let origin: String
    /// The configuration's `base_model_name_or_path`.
    public let baseModel: String?

    public init(
        entries: [Entry], head: [HeadEntry] = [], headPlace: HeadPlace = .savedModules, labels: [String] = [],
        origin: String = "the adapter", baseModel: String? = nil
    ) {
        self.entries = entries
        self.head = head
        self.headPlace = headPlace
        self.labels = labels
        self.origin = origin
        self.baseModel = baseModel
    }

    /// Reads an adapter's folder.
    ///
    /// - Throws: `Failure` that names the file and the field or tensor that is wrong or not supported.
    public init(folder: String) throws(Failure) {
        let configurationPath = folder + "/adapter_config.json"
        try checkFolderCanBeEntered(folder)
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
        var saved: [String] = []
        for name in file.names {
            let isA = name.hasSuffix(".lora_A.weight")
            if configuration.isSaved(name, prefix: prefix) {
                saved.append(name)
                continue
            }
            guard name.hasPrefix(prefix), isA || name.hasSuffix(".lora_B.weight") else {
                throw Failure(.badData, "\(path): tensor \(name) is not supported: only lora_A and lora_B of linear maps are")
            }
            if isA { maps.append(String(name.dropFirst(prefix.count).dropLast(".lora_A.weight".count))) }
        }
        guard file.names.count - saved.count == 2 * maps.count, !maps.isEmpty else {
            throw Failure(
                .badData, "\(path) does not hold one lora_A and one lora_B for each linear map; export the adapter again")
        }
        try configuration.checkWork(maps: maps)
        func matrix(_ name: String) throws(Failure) -> (values: [Float], rows: Int, columns: Int) {
            let (values, shape) = try Self.values(name, dimensions: 2, in: file, path: path)
            return (values, shape[0], shape[1])
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
        var head = try Self.head(saved, prefix: prefix, in: file, path: path)
        var place = HeadPlace.savedModules
        let headPath = folder + "/head.safetensors"
        if head.isEmpty, fileExists(headPath) {
            let file = try SafetensorsFile(path: headPath)
            head = try Self.head(file.names, prefix: "", in: file, path: headPath)
            place = .file
        }
        if head.isEmpty { try Self.checkHeadless(folder, configuration, path) }
        self.init(
            entries: entries, head: head, headPlace: place, labels: try Self.readLabels(folder, of: head), origin: folder,
            baseModel: configuration.baseModel)
    }

    /// - Throws: `Failure(.badData)` that names the missing file or tensors, if the folder without a head once had one
    private static func checkHeadless(_ folder: String, _ configuration: PEFTConfiguration, _ path: String) throws(Failure) {
        if !configuration.savedModules.isEmpty {
            throw Failure(
                .badData,
                "\(path) lacks the head \(configuration.savedModules.joined(separator: ", ")), which adapter_config.json names: copy the adapter's folder again"
            )
        }
        guard !fileExists(folder + "/labels.json") else {
            throw Failure(
                .badData,
                "\(folder) holds labels.json, but head.safetensors is missing, whose outputs they belong to: copy the adapter's folder again"
            )
        }
    }

    private static func readLabels(_ folder: String, of head: [HeadEntry]) throws(Failure) -> [String] {
        let path = folder + "/labels.json"
        guard let last = head.last, fileExists(path) else { return [] }
        let labels = try readJSON(path).elements?.map(\.text) ?? []
        guard labels.count == last.outputs, !labels.contains(nil) else {
            throw Failure(
                .badData,
                "\(path) is not a list of \(last.outputs) labels, which the head beside it has: export the adapter again")
        }
        let names = labels.compactMap { $0 }
        if let repeated = firstRepeated(names) {
            throw Failure(
                .badData, "\(path) names \"\(repeated)\" twice: give every output of the head a label of its own")
        }
        return names
    }

    /// Compares the labels of the head's outputs, byte by byte, with those of the task that it is to be used for.
    ///
    /// - Parameter planned: as a person or a plan names them, in the order of the outputs; empty where nobody did and the
    ///   adapter's own are to be taken
    /// - Throws: `Failure` if the head has others, or an order of its own, or if nobody knows what its outputs mean
    public func checkLabels(_ planned: [String]) throws(Failure) {
        guard !head.isEmpty else { return }
        guard !labels.isEmpty else {
            guard !planned.isEmpty else {
                throw Failure(
                    .usage,
                    "\(origin) has a head, but no labels.json that tells what its outputs mean: name the labels with --labels, in the order of its outputs"
                )
            }
            return
        }
        guard planned.isEmpty || planned.map({ Array($0.utf8) }) == labels.map({ Array($0.utf8) }) else {
            throw Failure(
                .badData,
                "\(origin) was trained for other labels, or in another order, than those given: leave --labels out, or give its labels.json with it"
            )
        }
    }

    private static func values(
        _ name: String, dimensions: Int, in file: SafetensorsFile, path: String
    ) throws(Failure) -> (values: [Float], shape: [Int]) {
        guard let tensor = file.tensors[name] else {
            throw Failure(.badData, "\(path) lacks the tensor \(name); export the adapter again")
        }
        guard tensor.shape.count == dimensions else {
            throw Failure(
                .badData,
                "\(path): tensor \(name) has shape \(tensor.shape), not \(dimensions == 2 ? "rows and columns" : "one dimension")"
            )
        }
        let values = try tensor.floats()
        if let bad = values.firstIndex(where: { !$0.isFinite }) {
            throw Failure(
                .badData, "\(path): tensor \(name) holds \(values[bad]) at position \(bad); train the adapter again")
        }
        return (values, tensor.shape)
    }

    /// Weight and bias of each linear map that the tensors belong to, sorted by its path.
    private static func head(
        _ names: [String], prefix: String, in file: SafetensorsFile, path: String
    ) throws(Failure) -> [HeadEntry] {
        var head: [HeadEntry] = []
        let known = Set(names)
        for name in names.sorted(by: { $0.utf8.lexicographicallyPrecedes($1.utf8) }) {
            guard name.hasSuffix(".weight") else {
                guard name.hasSuffix(".bias"), known.contains(name.dropLast(".bias".count) + ".weight") else {
                    throw Failure(.badData, "\(path): tensor \(name) is no weight or bias of a linear map's")
                }
                continue
            }
            let map = String(name.dropLast(".weight".count))
            let weight = try values(name, dimensions: 2, in: file, path: path)
            let bias = try values(map + ".bias", dimensions: 1, in: file, path: path)
            guard weight.shape[0] == bias.shape[0], weight.shape[0] >= 1, weight.shape[1] >= 1 else {
                throw Failure(
                    .badData, "\(path): the weight of \(map) has \(weight.shape[0]) rows, but its bias \(bias.shape[0])")
            }
            head.append(HeadEntry(map: String(map.dropFirst(prefix.count)), weight: weight.values, bias: bias.values))
        }
        return head
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

    /// Writes the folder; an adapter that was there is replaced in one step. Parameters and errors as those of `stage`.
    public func write(folder: String, maps: [LinearMap], extraFiles: [(name: String, bytes: [UInt8])] = []) throws(Failure) {
        try write(into: Self.place(folder), maps: maps, extraFiles: extraFiles)
    }

    /// The place of an adapter that will be written: whether it can be made is known at once.
    public static func place(_ folder: String) throws(Failure) -> FolderWriting {
        try FolderWriting(folder, replacing: isOurs)
    }

    /// Writes the folder into a place that was made before.
    public func write(
        into place: FolderWriting, maps: [LinearMap], extraFiles: [(name: String, bytes: [UInt8])] = []
    ) throws(Failure) {
        try stage(into: place, maps: maps, extraFiles: extraFiles)
        try putInPlace([place])
    }

    /// Writes the folder beside its place, for `putInPlace`.
    ///
    /// All entries get one rank, the largest, padded with zeros where they are smaller. Entries of one rank and scale
    /// are written as they are, with `lora_alpha` = scale x r; others have their scale folded into B, with
    /// `lora_alpha` = r.
    /// - Parameters:
    ///   - maps: the base's linear maps, so that `target_modules` can name modules that are adapted in every layer
    ///   - extraFiles: further files of the folder, such as a README
    /// - Throws: `Failure(.badData)` if a value is no finite number; the adapter that was there stays
    public func stage(
        into place: FolderWriting, maps: [LinearMap], extraFiles: [(name: String, bytes: [UInt8])] = []
    ) throws(Failure) {
        guard let first = entries.first else { throw Failure(.internalError, "an adapter without factors cannot be written") }
        let isUniform = entries.allSatisfy { $0.rank == first.rank && $0.scale == first.scale }
        let rank = entries.reduce(0) { max($0, $1.rank) }
        let alpha = isUniform ? Double(first.scale) * Double(rank) : Double(rank)
        // PEFT names a saved module by the first part of its path: `classifier` is all of `classifier.dense`.
        var modules: [String] = []
        for entry in headPlace == .savedModules ? head : [] {
            let module = String(entry.map.prefix { $0 != "." })
            if !modules.contains(module) { modules.append(module) }
        }
        let configuration = PEFTConfiguration.text(
            rank: rank, alpha: alpha, targetModules: targetModules(maps), savedModules: modules,
            task: head.isEmpty ? "CAUSAL_LM" : headPlace == .file ? "FEATURE_EXTRACTION" : "SEQ_CLS", baseModel: baseModel)
        try place.write { (temporary) throws(Failure) in
            try writeFile(temporary + "/adapter_config.json", Array(configuration.utf8))
            let prefix = "base_model.model."
            let writer = try SafetensorsWriter(
                path: temporary + "/adapter_model.safetensors",
                tensors: entries.flatMap {
                    [
                        TensorDeclaration(name: prefix + $0.map + ".lora_A.weight", dtype: .f32, shape: [rank, $0.inputs]),
                        TensorDeclaration(name: prefix + $0.map + ".lora_B.weight", dtype: .f32, shape: [$0.outputs, rank]),
                    ]
                } + (headPlace == .savedModules ? Self.declarations(head, prefix: prefix) : []), metadata: ["format": "pt"])
            for entry in entries {
                let padded = entry.padded(to: rank, foldingScale: !isUniform)
                for (name, values) in [(".lora_A.weight", padded.a), (".lora_B.weight", padded.b)] {
                    try Self.append(values, as: prefix + entry.map + name, to: writer)
                }
            }
            if headPlace == .savedModules { try Self.append(head, prefix: prefix, to: writer) }
            try writer.finish()
            if headPlace == .file, !head.isEmpty {
                let writer = try SafetensorsWriter(
                    path: temporary + "/head.safetensors", tensors: Self.declarations(head, prefix: ""),
                    metadata: ["format": "pt"])
                try Self.append(head, prefix: "", to: writer)
                try writer.finish()
            }
            if !labels.isEmpty {
                let list = JSONValue.array(labels.map(JSONValue.string))
                try writeFile(temporary + "/labels.json", Array((list.pretty + "\n").utf8))
            }
            for file in extraFiles { try writeFile(temporary + "/" + file.name, file.bytes) }
        }
    }

    private static func declarations(_ head: [HeadEntry], prefix: String) -> [TensorDeclaration] {
        head.flatMap {
            [
                TensorDeclaration(name: prefix + $0.map + ".weight", dtype: .f32, shape: [$0.outputs, $0.inputs]),
                TensorDeclaration(name: prefix + $0.map + ".bias", dtype: .f32, shape: [$0.outputs]),
            ]
        }
    }

    private static func append(_ head: [HeadEntry], prefix: String, to writer: SafetensorsWriter) throws(Failure) {
        for entry in head {
            try append(entry.weight, as: prefix + entry.map + ".weight", to: writer)
            try append(entry.bias, as: prefix + entry.map + ".bias", to: writer)
        }
    }

    /// Values that no reader would take are not written.
    private static func append(_ values: [Float], as name: String, to writer: SafetensorsWriter) throws(Failure) {
        if let bad = values.firstIndex(where: { !$0.isFinite }) {
            throw Failure(
                .badData,
                "the adapter was not written: \(name) holds \(values[bad]) at position \(bad); train with a lower learning rate")
        }
        try writer.append(name, floats: values)
    }

    /// Whether a file of this name may be replaced with an adapter's folder.
    public static func isOurs(_ name: String) -> Bool {
        name.hasPrefix("adapter_")
            || ["README.md", "tributary.json", "head.safetensors", "labels.json"].contains(name)
    }

    /// Short names of modules that are adapted wherever the base has them, whole paths of the others.
    ///
    /// A short name is the end of a path that means one module of each layer: BERT's `dense` would be three of them, and its
    /// pooler.
    private func targetModules(_ maps: [LinearMap]) -> [String] {
        let adapted = Set(entries.map(\.map))
        let known = Set(maps.map(\.name))
        /// The path without layer numbers.
        func kind(_ path: String) -> String {
            path.split(separator: ".").map { $0.allSatisfy(\.isNumber) ? "#" : String($0) }.joined(separator: ".")
        }
        var shortNames: [String: String] = [:]
        func shortName(_ path: String) -> String? {
            let parts = path.split(separator: ".")
            for start in parts.indices.reversed() {
                if parts[start].allSatisfy(\.isNumber) { break }
                let end = parts[start...].joined(separator: ".")
                let meant = maps.filter { $0.name.hasSuffix("." + end) }
                if meant.allSatisfy({ kind($0.name) == kind(path) }) {
                    return meant.allSatisfy { adapted.contains($0.name) } ? end : nil
                }
            }
            return nil
        }
        var names: [String] = []
        for entry in entries {
            let kind = kind(entry.map)
            if shortNames[kind] == nil { shortNames[kind] = known.contains(entry.map) ? shortName(entry.map) ?? "" : "" }
            let name = shortNames[kind].flatMap { $0.isEmpty ? nil : $0 } ?? entry.map
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
