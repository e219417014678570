/// `federation.yaml`: one mapping of keys to values. Every problem names file, line, key and what is possible.

import FoundationEssentials
import PlanOptions
import Primitives
import Yams

struct ConfigurationFile {
    let path: String

    /// Fills the options that no flag has set.
    ///
    /// - Throws: `Failure(.missingInput)` if there is no such file, else `Failure(.badConfiguration)`
    func fill(_ options: inout StartOptions) throws(Failure) {
        let data: Data
        do {
            data = try Data(contentsOf: URL(filePath: path))
        } catch {
            throw Failure(.missingInput, "the configuration \(path) cannot be read: check --config and the file's permissions")
        }
        guard let text = String(validating: data, as: UTF8.self) else {
            throw Failure(.badConfiguration, "\(path) is not UTF-8 text: save it as UTF-8")
        }
        let given = options
        for (key, value, line) in try entries(text) {
            guard let known = StartOptions.keys.first(where: { $0.name == key }) else {
                let names = StartOptions.keys.map(\.name)
                let advice =
                    NearestName.of(key, among: names).map { "did you mean \($0)?" }
                    ?? "the keys are \(names.joined(separator: ", "))"
                throw problem(line, "unknown key \(key): \(advice)")
            }
            let texts = try texts(of: value, key: known, line: line)
            // The value is checked even where a flag wins: a file that is wrong should say so.
            var scratch = options
            guard known.set(texts, in: &scratch) else {
                throw problem(line, "\(key) is \(quoted(texts, value)): it is \(known.expectation)")
            }
            if !known.isSet(in: given) { options = scratch }
        }
    }

    private func problem(_ line: Int?, _ sentence: String) -> Failure {
        Failure(.badConfiguration, "\(path)\(line.map { ":\($0)" } ?? ""): \(sentence)")
    }

    private func entries(_ text: String) throws(Failure) -> [(key: String, value: Node, line: Int?)] {
        let root: Node?
        do {
            root = try Yams.compose(yaml: text)
        } catch YamlError.duplicatedKeysInMapping(let duplicates, _) {
            let name = duplicates.sorted().first ?? ""
            let lines = text.split(separator: "\n", omittingEmptySubsequences: false).indices(where: { $0.hasPrefix(name + ":") })
            let second = lines.ranges.flatMap { Array($0) }.dropFirst().first.map { $0 + 1 }
            throw problem(second, "key \(name) stands there a second time: keep one of them")
        } catch YamlError.scanner(_, let what, let mark, _), YamlError.parser(_, let what, let mark, _),
            YamlError.composer(_, let what, let mark, _)
        {
            throw problem(mark.line, "this is not YAML: \(what)")
        } catch {
            throw problem(nil, "this is not YAML: \(error)")
        }
        // A file of comments is a file of defaults.
        guard let root else { return [] }
        guard case .mapping(let mapping) = root else {
            throw problem(root.mark?.line, "this is not a list of keys: write lines such as rounds: 20")
        }
        var found: [(String, Node, Int?)] = []
        for (key, value) in mapping {
            guard case .scalar(let name) = key else { throw problem(key.mark?.line, "a key is a plain word") }
            found.append((name.string, value, key.mark?.line))
        }
        return found
    }

    private func texts(of value: Node, key: ConfigurationKey<StartOptions>, line: Int?) throws(Failure) -> [String] {
        func scalar(_ node: Node) throws(Failure) -> String {
            guard case .scalar(let scalar) = node else {
                throw problem(node.mark?.line ?? line, "\(key.name): it is \(key.expectation)")
            }
            guard node.tag != Tag(.null) else {
                throw problem(
                    node.mark?.line ?? line,
                    "\(key.name) has no value: it is \(key.expectation); leave the line out for the default")
            }
            return scalar.string
        }
        guard case .sequence(let sequence) = value else { return [try scalar(value)] }
        guard key.isList else { throw problem(value.mark?.line ?? line, "\(key.name) is a list: it is \(key.expectation)") }
        var texts: [String] = []
        for node in sequence { texts.append(try scalar(node)) }
        return texts
    }

    private func quoted(_ texts: [String], _ value: Node) -> String {
        if case .sequence = value { return "[\(texts.joined(separator: ", "))]" }
        return texts.joined()
    }
}
