using System.Security.Cryptography;
using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Evaluation;

/// <summary>LongBench (Bai et al., arXiv 2308.14508) on disk, as it is published.</summary>
/// <remarks>
/// A folder with <c>dataset2prompt.json</c> and <c>dataset2maxlen.json</c>, directly or in <c>config</c>, and the data sets as
/// <c>NAME.jsonl</c>, directly or in <c>data</c>. Only the 16 English and code data sets (<see cref="Datasets"/>) can be measured.
/// </remarks>
public sealed class LongBenchFolder
{
    private const string PromptFile = "dataset2prompt.json";
    private const string LengthFile = "dataset2maxlen.json";

    // Far above LongBench's own files, the largest of which has about 20 MB.
    private const long LargestFile = 1L << 30;

    private readonly string _directory;
    private readonly string _prompts;
    private readonly string _lengths;

    /// <summary>Opens a folder.</summary>
    /// <param name="directory">The folder.</param>
    /// <exception cref="FileNotFoundException">One of the two files is missing.</exception>
    public LongBenchFolder(string directory)
    {
        ArgumentNullException.ThrowIfNull(directory);
        _directory = directory;
        _prompts = Find(PromptFile, "config");
        _lengths = Find(LengthFile, "config");
    }

    /// <summary>The data sets that can be measured.</summary>
    public static IReadOnlyList<string> Datasets { get; } =
    [
        "narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "gov_report", "qmsum", "multi_news", "trec",
        "triviaqa", "samsum", "passage_retrieval_en", "passage_count", "lcc", "repobench-p",
    ];

    /// <summary>Those of <see cref="Datasets"/> whose files exist.</summary>
    public IReadOnlyList<string> Available =>
        [.. Datasets.Where(name => Candidates($"{name}.jsonl", "data").Any(File.Exists))];

    /// <summary>Reads a data set.</summary>
    /// <param name="name">One of <see cref="Datasets"/>.</param>
    /// <exception cref="ArgumentException">There is no such data set.</exception>
    /// <exception cref="FileNotFoundException">Its file does not exist.</exception>
    /// <exception cref="UnusableFileException">It has no prompt or length, or a line is not valid; the message names the file, line and
    /// key.</exception>
    internal LongBenchDataset Read(string name)
    {
        if (!Datasets.Contains(name))
        {
            throw new ArgumentException($"Expected one of {string.Join(", ", Datasets)}, but got '{name}'.", nameof(name));
        }

        string data = Find($"{name}.jsonl", "data");
        using JsonDocument prompts = JsonFile.Open(_prompts);
        using JsonDocument lengths = JsonFile.Open(_lengths);
        string prompt = prompts.RootElement.FindString(name, _prompts)
            ?? throw new CheckpointException($"expected a prompt '{name}' for the data set {data}, but the key is absent.", _prompts);
        int length = lengths.RootElement.FindInt32(name, _lengths)
            ?? throw new CheckpointException($"expected a number of tokens '{name}' for the data set {data}, but the key is absent.", _lengths);
        if (length < 1)
        {
            throw new CheckpointException($"expected a number of tokens above 0 as '{name}', but got {length}.", _lengths);
        }

        byte[] bytes = CheckpointFile.ReadAllBytes(data, LargestFile);
        PromptTemplate template = PromptTemplate.Parse(prompt, $"{_prompts}: '{name}'");
        List<LongBenchItem> items = JsonLines.Read(bytes, data, (item, place) => Item(item, place, template));
        return items.Count > 0
            ? new LongBenchDataset(name, prompt, length, items, Convert.ToHexString(SHA256.HashData(bytes)))
            : throw new CheckpointException("expected a line for each sample, but there are none.", data);
    }

    private static LongBenchItem Item(JsonElement root, string place, PromptTemplate template)
    {
        string[] answers = Strings(root.Require("answers", JsonValueKind.Array, place), "answers", place);
        string[] classes = root.Find("all_classes") is null
            ? []
            : Strings(root.Require("all_classes", JsonValueKind.Array, place), "all_classes", place);
        return answers.Length > 0
            ? new LongBenchItem(template.Fill(root, place), answers, classes)
            : throw new CheckpointException("expected at least one text as 'answers', but the array is empty.", place);
    }

    private static string[] Strings(JsonElement array, string key, string place) =>
    [
        .. array.EnumerateArray().Select(item => item.ValueKind == JsonValueKind.String
            ? item.GetString()!
            : throw new CheckpointException($"expected texts as '{key}', but got {item.Quote()}.", place)),
    ];

    private string[] Candidates(string file, string folder) => [Path.Combine(_directory, file), Path.Combine(_directory, folder, file)];

    private string Find(string file, string folder)
    {
        string[] candidates = Candidates(file, folder);
        return candidates.FirstOrDefault(File.Exists)
            ?? throw new FileNotFoundException($"{candidates[0]}: expected the file here or in {folder}, but there is neither.", candidates[0]);
    }
}

/// <summary>A data set of LongBench.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Prompt">The prompt template.</param>
/// <param name="MaxTokens">Maximum number of tokens in an answer.</param>
/// <param name="Items">Its samples.</param>
/// <param name="Hash">SHA-256 of its file.</param>
internal sealed record LongBenchDataset(string Name, string Prompt, int MaxTokens, IReadOnlyList<LongBenchItem> Items, string Hash);

/// <summary>A sample of LongBench.</summary>
/// <param name="Prompt">The prompt, from the template.</param>
/// <param name="Answers">The correct answers.</param>
/// <param name="Classes">For classification, the names of all classes.</param>
internal sealed record LongBenchItem(string Prompt, IReadOnlyList<string> Answers, IReadOnlyList<string> Classes);
