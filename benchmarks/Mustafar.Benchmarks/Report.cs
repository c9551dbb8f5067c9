using System.Globalization;
using System.Text;
using Spectre.Console;

namespace Mustafar.Benchmarks;

/// <summary>A table of results, printed and written to files.</summary>
internal sealed class Report(string name, params string[] columns)
{
    private const int WidestTable = 180;

    private readonly List<string[]> _rows = [];
    private readonly List<(string Label, double Value)> _bars = [];

    internal void Add(params object[] cells) =>
        _rows.Add([.. cells.Select(cell => cell is double number ? Format(number) : Convert.ToString(cell, CultureInfo.InvariantCulture)!)]);

    /// <summary>Adds a bar to the chart.</summary>
    internal void AddBar(string label, double value) => _bars.Add((label, value));

    /// <summary>Prints the table. If a folder is given, also writes NAME.csv, NAME.md and, with a title, the chart NAME.png into
    /// it.</summary>
    internal void Write(DirectoryInfo? folder, string? chartTitle = null)
    {
        Table table = new();
        table.AddColumns(columns);
        foreach (string[] row in _rows)
        {
            table.AddRow(row);
        }

        AnsiConsole.Profile.Width = Math.Max(AnsiConsole.Profile.Width, WidestTable);
        AnsiConsole.Write(table);
        if (folder is null)
        {
            return;
        }

        folder.Create();
        File.WriteAllText(Path.Combine(folder.FullName, $"{name}.csv"), Lines(columns => string.Join(",", columns.Select(Quote)), rule: false));
        File.WriteAllText(Path.Combine(folder.FullName, $"{name}.md"), Lines(columns => $"| {string.Join(" | ", columns)} |", rule: true));
        if (chartTitle is not null)
        {
            BarChart.Write(Path.Combine(folder.FullName, $"{name}.png"), chartTitle, _bars);
        }
    }

    private static string Format(double number) =>
        number.ToString(Math.Abs(number) < 10 ? "0.00" : Math.Abs(number) < 100 ? "0.0" : "0", CultureInfo.InvariantCulture);

    private static string Quote(string cell) => cell.Contains(',') ? $"\"{cell}\"" : cell;

    private string Lines(Func<string[], string> line, bool rule)
    {
        StringBuilder text = new();
        text.AppendLine(line(columns));
        if (rule)
        {
            text.AppendLine(line([.. columns.Select(_ => "---")]));
        }

        foreach (string[] row in _rows)
        {
            text.AppendLine(line(row));
        }

        return text.ToString();
    }
}
