using System.Text.Json;
using System.Text.Json.Nodes;
using Mustafar.Models.Chat;
using Mustafar.Models.Evaluation;

namespace Mustafar.Tests.Evaluation;

/// <summary>The path from files to scores, on a model that says nothing but the letter k.</summary>
[TestFixture]
public sealed class LongBenchTests : TinyLanguageFixture
{
    [Test]
    public void FromFilesToScores([Values(1, 2)] int batch)
    {
        using TemporaryDirectory folder = Folder();
        LongBenchFolder bench = new(folder.Path);
        Assert.That(bench.Available, Is.EqualTo(new[] { "qasper", "trec", "lcc" }));
        foreach (CacheSetting setting in (CacheSetting[])[CacheSetting.Dense, new("pruned", new MustafarOptions())])
        {
            using (Assert.EnterMultipleScope())
            {
                // Answers of four tokens: kkkk. The second sample has it among its answers.
                Assert.That(Score("qasper", setting), Is.EqualTo(0.5));

                // Classes in kkkk: k and kk. The first sample is of class kk, of which k is part.
                Assert.That(Score("trec", setting), Is.EqualTo(0.5));
                Assert.That(Score("lcc", setting), Is.EqualTo(0.67), "4 of 4 and 4 of 8");
            }
        }

        double Score(string dataset, CacheSetting setting)
        {
            LongBenchTask task = new(Language, bench, dataset, ChatTemplate.Load(Checkpoint), batch: batch);
            Assert.That(task.Parts, Is.EqualTo(batch == 1 ? task.Samples : 1));
            TaskResult result = task.Summarize(
                [.. Enumerable.Range(0, task.Parts).Select(part => task.MeasurePart(setting, part, new Progress<double>(), default))]);
            Assert.That(
                result.Details!["answers"]!.AsArray().Select(answer => (string)answer!["got"]!), Is.All.EqualTo("kkkk"), dataset);
            return result.Metrics["score"];
        }
    }

    [Test]
    public void PromptsLoseTheirMiddleAndHaveAChatTemplateWhereThereIsOne()
    {
        using TemporaryDirectory folder = Folder();
        LongBenchFolder bench = new(folder.Path);
        ChatTemplate template = ChatTemplate.Load(Checkpoint);
        string chat = Prompt(new LongBenchTask(Language, bench, "qasper", template));
        string plain = Prompt(new LongBenchTask(Language, bench, "trec", template));
        string cut = Prompt(new LongBenchTask(Language, bench, "qasper", template, 21));
        string none = Prompt(new LongBenchTask(Language, bench, "qasper", template: null, 21));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(chat, Is.EqualTo("<|im_start|>user\nRead {it}: alpha beta gamma delta. Asked: why?<|im_end|>\n<|im_start|>assistant\n"));
            Assert.That(plain, Is.EqualTo("Classify: what is kk"));
            Assert.That(cut, Is.EqualTo("<|im_start|>user\nRead {it}:sked: why?<|im_end|>\n<|im_start|>assistant\n"), "ten bytes of each end");
            Assert.That(none, Is.EqualTo("Read {it}:sked: why?"));
        }

        string Prompt(LongBenchTask task) => Language.Tokenizer.Decode(task.MakeSample(0).Context, skipSpecialTokens: false);
    }

    [Test]
    public void APromptOfAnyLengthFitsIntoTheModel()
    {
        using TemporaryDirectory folder = Folder();
        File.WriteAllText(folder.File("qasper.jsonl"), Line(new { context = new string('é', 5000), input = "why?", answers = (string[])["k"] }));
        LongBenchTask task = new(Language, new LongBenchFolder(folder.Path), "qasper", ChatTemplate.Load(Checkpoint));
        Assert.That(task.MakeSample(0).Context, Has.Count.InRange(2048 - 4 - 8, 2048 - 4));
    }

    [TestCase("qasper.jsonl", "{\"context\": \"a\"", "qasper.jsonl: line 3", "JSON")]
    [TestCase("qasper.jsonl", "[1]", "qasper.jsonl: line 3", "object")]
    [TestCase("qasper.jsonl", "{\"context\": \"a\", \"answers\": [\"b\"]}", "qasper.jsonl: line 3", "'input'")]
    [TestCase("qasper.jsonl", "{\"context\": 1, \"input\": \"a\", \"answers\": [\"b\"]}", "qasper.jsonl: line 3", "'context'")]
    [TestCase("qasper.jsonl", "{\"context\": \"a\", \"input\": \"a\"}", "qasper.jsonl: line 3", "'answers'")]
    [TestCase("qasper.jsonl", "{\"context\": \"a\", \"input\": \"a\", \"answers\": []}", "qasper.jsonl: line 3", "'answers'")]
    [TestCase("qasper.jsonl", "{\"context\": \"a\", \"input\": \"a\", \"answers\": [5]}", "qasper.jsonl: line 3", "'answers'")]
    public void ALineThatIsNotValidIsNamed(string file, string line, params string[] words)
    {
        using TemporaryDirectory folder = Folder();
        File.AppendAllText(folder.File(file), line + "\n");
        Refused(folder, words);
    }

    [TestCase("dataset2prompt.json", "{}", "dataset2prompt.json", "'qasper'")]
    [TestCase("dataset2prompt.json", "{ \"qasper\": 5 }", "dataset2prompt.json", "'qasper'")]
    [TestCase("dataset2prompt.json", "{ \"qasper\": \"a {context\" }", "dataset2prompt.json", "{context")]
    [TestCase("dataset2prompt.json", "{ \"qasper\": \"{0}{}\" }", "dataset2prompt.json", "braces")]
    [TestCase("dataset2prompt.json", "{ \"qasper\": \"{no_such}\" }", "qasper.jsonl: line 1", "'no_such'")]
    [TestCase("dataset2maxlen.json", "{}", "dataset2maxlen.json", "'qasper'")]
    [TestCase("dataset2maxlen.json", "{ \"qasper\": 0 }", "dataset2maxlen.json", "'qasper'")]
    [TestCase("dataset2maxlen.json", "5", "dataset2maxlen.json", "object")]
    [TestCase("qasper.jsonl", "\n\n", "qasper.jsonl", "none")]
    public void AFileThatIsNotValidIsNamed(string file, string text, params string[] words)
    {
        using TemporaryDirectory folder = Folder();
        File.WriteAllText(folder.File(file), text);
        Refused(folder, words);
    }

    [Test]
    public void WhatIsNotThereIsNamed()
    {
        using TemporaryDirectory folder = Folder();
        LongBenchFolder bench = new(folder.Path);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(() => new LongBenchTask(Language, bench, "dureader"), Throws.ArgumentException.With.Message.Contains("narrativeqa"));
            Assert.That(() => new LongBenchTask(Language, bench, "samsum"), Throws.InstanceOf<FileNotFoundException>().With.Message.Contains("samsum.jsonl"));
            Assert.That(
                () => new LongBenchTask(Language, bench, "qasper", maxPromptTokens: 2048), Throws.ArgumentException.With.Message.Contains("2044"));
            Assert.That(() => new LongBenchFolder(Checkpoint), Throws.InstanceOf<FileNotFoundException>().With.Message.Contains("dataset2prompt.json"));
        }
    }

    private void Refused(TemporaryDirectory folder, string[] words)
    {
        string message = Assert.Catch<UnusableFileException>(() => _ = new LongBenchTask(Language, new LongBenchFolder(folder.Path), "qasper"))!.Message;
        foreach (string word in words)
        {
            Assert.That(message, Does.Contain(word));
        }
    }

    private static TemporaryDirectory Folder()
    {
        TemporaryDirectory folder = new();
        File.WriteAllText(folder.File("dataset2prompt.json"), new JsonObject
        {
            ["qasper"] = "Read {{it}}: {context} Asked: {input}", ["trec"] = "Classify: {input}", ["lcc"] = "{context}",
        }.ToJsonString());
        File.WriteAllText(folder.File("dataset2maxlen.json"), """{ "qasper": 4, "trec": 4, "lcc": 4 }""");
        File.WriteAllText(
            folder.File("qasper.jsonl"),
            Line(new { context = "alpha beta gamma delta.", input = "why?", answers = (string[])["x"] })
            + Line(new { context = "c", input = "é", answers = (string[])["x", "KKKK!"], all_classes = (string[]?)null }));
        Directory.CreateDirectory(folder.File("data"));
        string[] classes = ["k", "x", "kk"];
        File.WriteAllText(
            folder.File("data/trec.jsonl"),
            Line(new { context = "", input = "what is kk", answers = (string[])["kk"], all_classes = classes })
            + "\r\n"
            + Line(new { context = "", input = "what is x", answers = (string[])["x"], all_classes = classes }));
        File.WriteAllText(
            folder.File("data/lcc.jsonl"), Line(new { context = "a = 1", input = "", answers = (string[])["kkkkxxxx"] }).TrimEnd('\n'));
        return folder;
    }

    private static string Line<T>(T item) => JsonSerializer.Serialize(item) + "\n";
}
