using System.Globalization;
using System.Text.Json;
using Mustafar.Examples.Llama.Commands;

namespace Mustafar.Tests.Llama;

/// <summary>Numbers are read and written alike in all languages: those with a decimal comma, other digits or signs, or a dotless i.</summary>
[TestFixture]
public sealed class LocaleTests
{
    [TestCase("de-DE")]
    [TestCase("tr-TR")]
    [TestCase("fa-IR")]
    [TestCase("ar-SA")]
    public void CommandsRunAsInTheInvariantCulture(string name)
    {
        using TemporaryDirectory directory = new TemporaryDirectory().WithTinyCheckpoint();
        File.WriteAllText(directory.File("text"), "Title In Title, 0.5 and -1");
        string saved = directory.File("saved");
        string[][] commands =
        [
            ["generate", "--prompt", "hi", "--temperature", "0.5", "--top-p", "0.9", "--key-sparsity", "0.5", "--save", saved],
            ["generate", "--load", saved, "--key-sparsity", "0.5", "--temperature", "1e-1"],
            ["generate", "--prompt", "hi", "--beams", "2", "--length-penalty", "-0.5"],
            ["score", "--file", directory.File("text")],
        ];
        foreach (string[] command in commands)
        {
            // The number of threads is the process's, and stands in the reports.
            string[] args = [.. command, "--model", directory.Path, "--threads", "1", .. command[0] == "score" ? Array.Empty<string>() : ["--max-tokens", "6"]];
            (int code, string expected, string error) = Run(CultureInfo.InvariantCulture, [.. args, "--json"]);
            Assert.That(code, Is.Zero, error);
            (code, string actual, error) = Run(new CultureInfo(name), [.. args, "--json"]);
            Assert.That(code, Is.Zero, error);
            Assert.That(WithoutTimes(actual), Is.EqualTo(WithoutTimes(expected)));
            (_, actual, _) = Run(new CultureInfo(name), args);
            Assert.That(actual.Where(char.IsDigit), Is.All.InRange('0', '9'));
        }

        (int usage, _, string message) = Run(new CultureInfo(name), ["generate", "--temperature", "0,5"]);
        Assert.That(usage, Is.EqualTo(2));
        Assert.That(message, Does.Contain("'0,5'; use a decimal point, not a comma"));
    }

    private static (int Code, string Output, string Error) Run(CultureInfo culture, string[] args)
    {
        CultureInfo before = CultureInfo.CurrentCulture;
        CultureInfo.CurrentCulture = culture;
        try
        {
            using StringReader input = new("");
            using StringWriter output = new(), error = new();
            int code = LlamaProgram.Run(args, input, output, error, showProgress: false);
            Assert.That(CultureInfo.CurrentCulture, Is.EqualTo(culture));
            return (code, output.ToString(), error.ToString());
        }
        finally
        {
            CultureInfo.CurrentCulture = before;
        }
    }

    private static string WithoutTimes(string json)
    {
        using JsonDocument document = JsonDocument.Parse(json);
        return string.Join('\n', document.RootElement.EnumerateObject()
            .Where(property => !property.Name.Contains("second")).Select(property => property.ToString()));
    }
}
